"""Commands beside `fit`, `validate` and `test`: thin, one file each."""
