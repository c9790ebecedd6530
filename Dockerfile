# Not tested: this project is built where no Docker can run. A test reads this file and compose.yaml, and compares what they
# say with what the workspace builds; nobody has built the image here. Please tell what is wrong.
#
#     docker build -t rocket-rides-log .
#     docker run --rm rocket-rides-log consumer --help

FROM rust:1.95.0-slim-bookworm AS build
WORKDIR /build
COPY . .
# Everything but what is for developers: tests, chaos and benchmarks.
RUN cargo build --locked --release --workspace --bins \
        --exclude tests --exclude chaos --exclude benchmarks --exclude manual --exclude launcher \
    && mkdir -p /out/bin /out/receipts /out/payments \
    && find target/release -maxdepth 1 -type f -executable -exec install --strip --target-directory /out/bin {} +

FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /out/bin/ /usr/local/bin/
# Named volumes take their owner from here.
COPY --from=build --chown=65532:65532 /out/receipts /var/lib/receipts
COPY --from=build --chown=65532:65532 /out/payments /var/lib/payments
# Nobody: no name, no home, no shell.
USER 65532:65532
# SIGTERM lets a process finish what it has in hand: ten seconds at most.
STOPSIGNAL SIGTERM
CMD ["api", "--help"]
