# One-line verbs. `just` lists them; each line also works without just.

_list:
    @just --list --unsorted

# Builds the anysplit binary
build:
    cargo build --release

# Runs all tests
test *ARGS:
    cargo test --workspace {{ARGS}}

# Tests the scripts in tools; measures nothing
test-tools:
    python3 -m unittest discover -s tools/tests -t tools

# Formats, then reports what clippy finds
lint:
    cargo fmt --all && cargo clippy --workspace --all-targets -- -D warnings

# Checks the rules that no compiler knows
tidy:
    cargo xtask tidy

# Regenerates tests/golden with Hugging Face
golden *ARGS:
    cargo xtask golden {{ARGS}}

# Completes a prompt with the model that is inside the binary, split over three ranks
demo PROMPT="Once upon a time":
    cargo run --release -- generate --tp 3 --stats "{{PROMPT}}"

# Measures decoding, as a fraction of what this machine could do
bench *ARGS:
    cargo run --release -- bench decode {{ARGS}}

# Compares speed, as fractions of this machine's limits, with the baseline stored for it; --update stores a new one
bench-check *ARGS:
    cargo build --release && python3 tools/bench_check.py {{ARGS}}

# Has Perfetto's own trace processor, which it fetches, read files that --trace wrote
check-trace *FILES:
    python3 tools/check_trace.py {{FILES}}

# Measures beside llama.cpp, which it fetches and builds: see tools/compare_llama_cpp.py --help
compare *ARGS:
    cargo build --release && python3 tools/compare_llama_cpp.py {{ARGS}}

# Measures the server beside llama-server: see tools/compare_servers.py --help
compare-servers *ARGS:
    cargo build --release && python3 tools/compare_servers.py {{ARGS}}

# Tries the page in headless Chromium, with npm's playwright-core
check-page *ARGS:
    tools/page/check {{ARGS}}

# Tries the server with the clients that people use, from PyPI and npm
check-clients *ARGS:
    cargo build --release && tools/clients/check {{ARGS}}

# Compiles the CUDA kernels for four architectures, with NVIDIA's compiler from PyPI, and tells what each needs
check-kernels *ARGS:
    tools/kernels/check {{ARGS}}

# Packs what a machine with a GPU needs (pack), or measures everything on this machine's GPU (run)
gpu *ARGS:
    cargo xtask gpu {{ARGS}}

# What every change must pass
ci:
    .ci/run
