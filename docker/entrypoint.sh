#!/bin/sh
# Without a command's name before them, the options are those of fit, and a run that was stopped goes
# on: a container that is started again with the same options needs nothing else.
set -eu

# exec, so that the program is what gets the container's signals.
case "${1:-}" in
    validate | test | compare | --help | -h | "") exec python -m pgprune_lightning "$@" ;;
    fit) shift ;;
esac
for option in "$@"; do
    case "$option" in
        # Told what to go on from, or asked a question: as it stands.
        --resume | --resume=* | --help | -h | --print_config*) exec python -m pgprune_lightning fit "$@" ;;
    esac
done
exec python -m pgprune_lightning fit "$@" --resume auto
