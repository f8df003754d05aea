#!/bin/bash
# deps.sh - gathers what the build takes beside the toolkit from this system into
# a folder, for a machine with a card where nothing can be installed.
#
#     tests/gpu/deps.sh FOLDER [blas]
#     ... take FOLDER there ...
#     . FOLDER/env.sh && tests/gpu/run.sh
#
# With it a bare build (SL_BARE) has golden_test, sluiced, its worker and the
# command, all but libav.  `blas` adds
# OpenBLAS, 37 MB, which makes the cpu twins quick.  Both systems need the same
# processor family, and the other one a libc at least as new.
set -eu
[ $# -ge 1 ] || { sed -n '2,14p' "$0"; exit 2; }
to=$1
[ "${2:-}" = blas ] && blas=1 || blas=
mkdir -p "$to/include" "$to/lib" "$to/bin"
arch=$(gcc -print-multiarch)

header() { # a file or a folder below /usr/include
    local from=/usr/include/$1
    [ -e "$from" ] || from=/usr/include/$arch/$1
    mkdir -p "$to/include/$(dirname "$1")"
    cp -rL "$from" "$to/include/$(dirname "$1")/"
}

library() { # by the linker's name; needed ones too, but for the system's own
    local file soname
    file=$(readlink -f "$(gcc -print-file-name="lib$1.so")")
    file "$file" | grep -q ELF || { echo "deps.sh: no shared lib$1" >&2; exit 1; }
    soname=$(readelf -d "$file" | sed -n 's/.*SONAME.*\[\(.*\)\]/\1/p')
    cp -L "$file" "$to/lib/$soname"
    ln -sf "$soname" "$to/lib/lib$1.so"
    needed "$file"
}

needed() {
    ldd "$1" | awk '$3 ~ /^\// { print $1, $3 }' | while read -r name path; do
        case $name in
        libc.so* | libm.so* | libpthread* | libdl* | librt* | libgcc_s* | libstdc++*) ;;
        *) [ -e "$to/lib/$name" ] || cp -L "$path" "$to/lib/$name" ;;
        esac
    done
}

for h in cjson utf8proc.h zlib.h zconf.h protobuf-c nng sqlite3.h openssl cyaml yaml.h \
    sentencepiece_processor.h; do
    header $h
done
# Of the headers of OpenSSL some are the processor's.
cp -rL "/usr/include/$arch/openssl/." "$to/include/openssl/"
for l in cjson utf8proc z protobuf-c nng sqlite3 crypto ssl cyaml yaml sentencepiece; do
    library $l
done
cp -L "$(command -v protoc-c)" "$to/bin/"
needed "$to/bin/protoc-c"
if [ -n "$blas" ]; then
    header cblas.h
    header openblas_config.h
    library openblas
fi
cat > "$to/env.sh" <<'END'
deps=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export PATH=$deps/bin:$PATH
export CMAKE_PREFIX_PATH=$deps${CMAKE_PREFIX_PATH:+:$CMAKE_PREFIX_PATH}
export LD_LIBRARY_PATH=$deps/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
END
du -sh "$to"
