# For convenience; each recipe is a line that can be typed as well. `just` alone lists them.

_default:
    @just --list

# Everything that a change has to pass
ci:
    .ci/run

# Format, lints, and the types of the CUDA backend and of OTLP
lint:
    .ci/run lint

# The documentation, which has no warning
doc:
    .ci/run doc

# All tests on the default backend
test:
    .ci/run test

# The manifests of deploy/, rendered, validated and compared with the programs
manifests:
    .ci/run manifests

# The golden tests with LibTorch
test-tch:
    .ci/run test-tch

# Advisories, licences, sources and banned crates
deny:
    .ci/run deny

# LibTorch for the feature `tch`, where only a Python package index is reached
libtorch:
    .ci/libtorch

# The book's recipes over five seeds, compared with its table
book:
    python3 bench/book.py

# The book's recipes on four local workers, compared with one process
cluster:
    python3 bench/cluster.py

# Images per second, memory and the coordinator's costs, beside PyTorch's DDP on this machine
speed:
    python3 bench/speed.py

# What a step costs the coordinator, from 1 to 64 workers and from 0.1 to 100 million parameters
scaling:
    cargo bench --workspace --bench scaling

# What a gradient costs over gRPC between processes, with tonic's streams and with ours
grpc:
    cargo bench --workspace --bench grpc

# The networks' products of matrices, beside those of the crate that Burn's CPU backend uses
products:
    cargo bench --workspace --bench products

# What a step costs the coordinator besides waiting
step:
    cargo bench -p coordinator --bench step

# The pictures of the page in docs/
page:
    python3 bench/page.py

# What a collector of OpenTelemetry gets, with the feature `otlp`
otlp:
    .ci/run otlp

# What it costs a step that the run is watched
watching:
    python3 bench/watching.py

# What --journal adds to a step, where the disk is memory
journal:
    cargo build --release --workspace
    python3 bench/journal.py

# What moving a gradient between processes costs: as bytes, and through shared memory
wire:
    cargo bench -p coordinator --bench wire

# Kills, holds up, stops and resumes everything in runs for so many minutes, and compares what comes out
chaos MINUTES:
    cargo build --release --workspace
    TELAR_CHAOS_MINUTES={{MINUTES}} TELAR_CHAOS_SEED=${TELAR_CHAOS_SEED:-$(date +%s)} cargo test --release --workspace --test cluster -- --exact chaos::soak_with_random_faults_loses_nothing --nocapture

# Attacks a run in every way at once for so many minutes, and compares what comes out
siege MINUTES:
    cargo build --release --workspace
    TELAR_SIEGE_MINUTES={{MINUTES}} cargo test --release --workspace --test cluster -- --exact hostile::run_under_attack_has_bits_of_one_process --nocapture

# The schedule of a seed of the simulation, line by line
sim SEED:
    TELAR_SIM_SEED={{SEED}} cargo test --release --workspace --test simulation -- --exact schedule_of_seed_ends_with_reference_result --nocapture

# Feeds every fuzz target of fuzz/ for so many minutes; needs a nightly compiler
fuzz MINUTES:
    TELAR_FUZZ_MINUTES={{MINUTES}} .ci/run fuzz

# Writes the inputs anew that fuzz targets begin with
fuzz-seeds:
    cargo test --release --workspace --test cluster -- --exact fuzz::write_seeds --ignored
