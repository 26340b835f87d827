#!/usr/bin/env bash
# The paper's tables for one data set, from training to table: runs reproduce_tables.py with $PYTHON if it is set,
# else with the Python of .venv if there is one.
#   scripts/reproduce_tables.sh para --data-root PARA --dry-run
#   scripts/reproduce_tables.sh --help
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if [ -z "${PYTHON:-}" ]; then
    PYTHON=$here/../.venv/bin/python
    [ -x "$PYTHON" ] || PYTHON=python3
fi
exec "$PYTHON" "$here/reproduce_tables.py" "$@"
