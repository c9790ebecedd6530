# shellcheck shell=bash
# Sourced by bin/up, bin/test and bin/bench: makes sure that Rust has a linker. The programs themselves read .env.

# The Procfile and the tests look for the binaries here.
export CARGO_TARGET_DIR=target

command -v cargo >/dev/null || {
    echo "Rust is needed: install it from https://rustup.rs, then run this again" >&2
    exit 1
}
# rustc links with the C compiler, which a machine with Rust alone does not have.
if ! command -v cc >/dev/null; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        apt-get update
        DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends gcc libc6-dev
    else
        echo "a linker is needed. Run: sudo apt-get install -y gcc libc6-dev" >&2
        exit 1
    fi
fi
