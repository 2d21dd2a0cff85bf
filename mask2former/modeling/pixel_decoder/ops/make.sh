#!/bin/sh
# Build the compiled back ends of multi-scale deformable attention in place, as far as this machine allows.
#
#   sh make.sh                 all of them
#   sh make.sh --strict cpp    only the C++ one; exit with 1 if that fails
#   PYTHON=/path/to/python sh make.sh
#
# Exits with 0 also when nothing can be built: the program then uses PyTorch.

ops=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd) || exit 1

for python in "$PYTHON" python python3; do
    if [ -n "$python" ] && command -v "$python" >/dev/null 2>&1; then
        if "$python" -c 'import torch' >/dev/null 2>&1; then
            exec "$python" "$ops/build_ops.py" "$@"
        fi
        tried="$tried $python"
    fi
done

echo "ms_deform_attn: nothing built: none of these has PyTorch:${tried:- (no Python found)}. Set PYTHON."
case " $* " in *" --strict "*) exit 1 ;; esac
exit 0
