"""Studies behind the results, and methods to compare with; not part of the installed package.

`study` and `variance` are commands of the program. `backpropagation` and `slicegpt` are methods of
`compare`, `unit_scaling` is an option of `bench`. Each imports from `pgprune_lightning`, which
imports none of them but by name, when it is asked for one.
"""
