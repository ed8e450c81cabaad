# The two commands of the README, and the shorter ones behind them.

.PHONY: demo test bench tidy build clean

# The main job on a real Debian appliance. KEEP=1 leaves it running and says how to look around.
demo:
	@scripts/install-packages demo
	@echo "building what plays the demo"
	@cargo run --package xtask -- demo

# Everything that must pass, in the order of cost.
test:
	@scripts/install-packages test
	@cargo xtask test

# Our figures beside those of peers, in one run; see docs/performance.md. QUICK=1 for the short form, ROWS=store,open for
# some groups of rows.
bench:
	@scripts/install-packages bench
	@echo "building what measures, and the program: some minutes the first time"
	@cargo build --release --package collective-cli --package collective-bench
	@"$${CARGO_TARGET_DIR:-target}/release/collective-bench"
	@[ -n "$(QUICK)" ] || cargo test --release --package collective-repository --features at-size --lib figures -- --nocapture

tidy:
	@cargo xtask tidy

build:
	@cargo build --release --package collective-cli

clean:
	@cargo clean
