#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A program in C, compiled with what pkg-config says of an installed Espalier, and one in C++ that sees no libtorch.
#   pkg_config.sh PKG_CONFIG_FOLDER EXAMPLES OUT MODEL PICTURE
set -euo pipefail
export PKG_CONFIG_PATH=$1
examples=$2 out=$3
shift 3
read -ra flags <<<"$(pkg-config --cflags --libs espalier)"
rpath=-Wl,-rpath,$(pkg-config --variable=libdir espalier)
mkdir -p "$out"
cc -std=c11 "$examples/c/generate.c" "${flags[@]}" "$rpath" -o "$out/generate_c"
c++ -std=c++20 "$examples/generate.cpp" "${flags[@]}" "$rpath" -o "$out/generate_cpp"
"$out/generate_c" "$@" "What is it?"
"$out/generate_cpp" "$@" "What is it?"
