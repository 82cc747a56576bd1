#!/usr/bin/env bash
# Builds llama.cpp for this machine (release, native instructions, CPU only)
# from the sources that the PyPI package llama-cpp-python carries, into
# target/peers/bin. Needs a C++ compiler, cmake and python3 with pip. With the
# argument `sources` it only fetches them.
set -euo pipefail

version="0.3.36"

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
peers="$root/target/peers"
sources="$peers/llama_cpp_python-$version/vendor/llama.cpp"

if [[ ! -d "$sources" ]]; then
    echo "peers: downloading llama-cpp-python $version" >&2
    mkdir -p "$peers"
    python3 -m pip download --no-deps --no-binary :all: --dest "$peers" "llama-cpp-python==$version" >&2
    tar -xzf "$peers/llama_cpp_python-$version.tar.gz" -C "$peers"
    # Some versions of GCC take the tile configuration for eight bytes and drop the
    # stores to the rest, so that the first tile instruction is illegal; this
    # line makes the whole structure visible to the compiler.
    sed -i 's|^    _tile_loadconfig(&tc);|    __asm__ volatile("" : : "m"(tc));\n&|' \
        "$sources/ggml/src/ggml-cpu/amx/mmq.cpp"
fi

[[ "${1:-}" == sources ]] && exit

echo "peers: building llama.cpp, which takes some minutes" >&2
cmake -S "$sources" -B "$peers" -DLLAMA_BUILD_COMMIT="llama-cpp-python-$version" -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DBUILD_SHARED_LIBS=ON \
    -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF \
    -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_APP=OFF >"$peers/cmake.log"
cmake --build "$peers" --parallel "$(nproc)" --target llama-bench llama-completion llama-perplexity >"$peers/build.log"
echo "peers: $peers/bin is ready" >&2
