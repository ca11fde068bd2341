# The checks of this repository. `just` lists them; `.ci/run` and the GitHub workflow run them.
#
# A recipe fails where its tool is missing. `.ci/run` installs the tools, and reports what it skips.

set shell := ["bash", "-euo", "pipefail", "-c"]
set ignore-comments

# The minimum supported Rust version.
msrv := `sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml | head -n 1`
# Platforms that `target` checks from Linux on x86_64. It compiles the library, and runs nothing.
targets := "x86_64-unknown-linux-musl aarch64-unknown-linux-gnu x86_64-apple-darwin aarch64-apple-darwin x86_64-pc-windows-gnu"
# The nightly toolchain that wrote tests/public-api.txt. Others may format items differently.
api_nightly := "1.97.0-nightly (4d1f98451 2026-05-15)"
# The image that `image` makes.
busybox := "moat-ci-busybox"

_list:
    @just --list --unsorted

# The checks that need neither an engine nor much time
check: fmt typos clippy features docs

# Formatting, also of the packages that are not members of the workspace
fmt:
    cargo fmt --all --check
    cargo fmt --manifest-path fuzz/Cargo.toml --check
    cargo fmt --manifest-path benches/testcontainers/Cargo.toml --check

# Spelling, American (pip install typos, or cargo install typos-cli)
typos:
    typos

# Licenses, versions and sources of dependencies (cargo install cargo-deny)
deny:
    cargo deny --locked check bans licenses sources

# Security advisories and yanked versions; fetches the advisory database (cargo install cargo-deny)
advisories:
    cargo deny --locked check advisories

# Clippy on all code, with the default features, without features, and with all
clippy:
    cargo clippy --locked --quiet --package moat --all-targets -- -D warnings
    cargo clippy --locked --quiet --package moat --all-targets --no-default-features -- -D warnings
    cargo clippy --locked --quiet --workspace --all-targets --all-features -- -D warnings

# Clippy on the library with each feature alone (cargo install cargo-hack)
features:
    # `kube` does not pick a version of the API types: `kube-earliest` does.
    # The library alone, because dev-dependencies enable features of shared dependencies.
    cargo hack clippy --locked --quiet --package moat --lib --each-feature --exclude-features kube -- -D warnings
    # Without `docker`, no client of an engine is compiled.
    tree=$(cargo tree --locked --package moat --edges normal --no-default-features --features process --prefix none); \
        ! grep -E '^(bollard|hyper) ' <<<"$tree"

# The API documentation, with all features and without any
docs:
    RUSTDOCFLAGS='-D warnings' cargo doc --locked --quiet --package moat --no-default-features --no-deps
    RUSTDOCFLAGS='-D warnings' cargo doc --locked --quiet --package moat --all-features --no-deps

# The API documentation as docs.rs builds it (rustup toolchain install nightly)
docs-rs:
    RUSTDOCFLAGS='-D warnings --cfg docsrs' cargo +nightly doc --locked --quiet --package moat --lib --all-features --no-deps

# The public API, compared with tests/public-api.txt (rustup toolchain install nightly; cargo install cargo-public-api)
public-api:
    cargo +nightly public-api --package moat --all-features -sss | diff tests/public-api.txt - \
        || { echo 'The public API has changed. If this is intended: just public-api-update' >&2; exit 1; }

# Writes tests/public-api.txt
public-api-update:
    cargo +nightly public-api --package moat --all-features -sss >tests/public-api.txt

# All tests, or those that the arguments name: `just test --test format`
test *args:
    cargo test --locked --workspace --all-features {{ args }}

# Tests and quickstart with the default features on a machine without an engine
test-no-engine:
    #!/usr/bin/env bash
    set -euo pipefail
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    # Links to every program on the PATH except engines, because tests start their own daemons.
    mkdir "$work/programs"
    for directory in ${PATH//:/ }; do
        # The first program of a name wins.
        ln -s "$directory"/* "$work/programs/" 2>/dev/null || true
    done
    rm -f "$work"/programs/{docker,containerd,podman,runc}*
    export PATH=$work/programs DOCKER_HOST=unix:///nonexistent/docker.sock
    unset MOAT_ENGINE MOAT_CHROMIUM
    cargo test --locked
    # A current context that leads nowhere: the fallback is used.
    context=$work/docker/contexts/meta/$(printf none | sha256sum | cut -d' ' -f1)
    mkdir -p "$context"
    echo '{"currentContext": "none"}' >"$work/docker/config.json"
    echo '{"Endpoints": {"docker": {"Host": "unix:///nonexistent/docker.sock"}}}' >"$context/meta.json"
    unset DOCKER_HOST
    DOCKER_CONFIG=$work/docker cargo run --locked --quiet --example quickstart | tee "$work/quickstart"
    grep -q '^runtime: local processes' "$work/quickstart"

# The tests on engines beside the machine's own (as root; apt-get install debootstrap podman runc jq)
engines: docker28 podman5 engine-variants

# The contract of a runtime, and the tests on an engine, on Docker 28
docker28:
    tests/engines/docker28 "{{ just_executable() }}" engine-tests

# The same on Podman 5
podman5:
    tests/engines/podman5 "{{ just_executable() }}" engine-tests

# The contract and the tests of the engine that DOCKER_HOST names, except those with daemons or kills
engine-tests:
    cargo test --locked --workspace --quiet --all-features --test conformance -- docker::
    cargo build --locked --workspace --quiet --all-features --examples
    cargo test --locked --workspace --quiet --all-features --test engine -- --skip daemon:: --skip crash::

# The output of containers on the variants of these engines, and the contract on Podman 4
engine-variants:
    #!/usr/bin/env bash
    set -euo pipefail
    attach=(cargo test --locked --workspace --quiet --all-features --test conformance -- docker::attach)
    for variant in --rootless --containerd --userns; do
        tests/engines/docker28 $variant "${attach[@]}"
    done
    tests/engines/podman5 --rootless "${attach[@]}"
    tests/engines/podman4 cargo test --locked --workspace --quiet --all-features --test conformance -- docker::
    # The client of the tests has no TLS.
    tests/engines/docker28 --tls "{{ just_executable() }}" tls-run

# A run on the engine that DOCKER_HOST names, with TLS
tls-run: image
    output=$(cargo run --locked --quiet --features tls --example quickstart -- {{ busybox }}); \
        echo "$output"; grep -q 'audit complete' <<<"$output"

# The helper of pods that is in the package, compared with a new build of its sources
helper:
    crates/helper/build --check

# The contract of a runtime on Kubernetes 1.20, and the examples (as root; once for each machine:
# tests/engines/kubernetes --build)
kube-conformance:
    tests/engines/kubernetes cargo test --locked --workspace --all-features --test conformance -- kubernetes::
    cargo build --locked --workspace --quiet --all-features --examples
    tests/engines/kubernetes cargo test --locked --workspace --all-features --test examples --test pipelines -- cluster::

# The other tests on Kubernetes, with kills and with faults of the cluster: a quarter of an hour
kube-tests:
    tests/engines/kubernetes cargo test --locked --workspace --all-features --test kubernetes

# Kills of moat and of its daemon on Docker 28, and 1,000 kills at random times: half an hour
docker28-campaign:
    cargo build --locked --quiet --all-features --examples
    tests/engines/docker28 cargo test --locked --all-features --test engine -- --include-ignored daemon::
    tests/engines/docker28 cargo test --locked --all-features --test engine -- --include-ignored crash::

# An image of busybox for the examples (apt-get install busybox-static)
image:
    #!/usr/bin/env bash
    set -euo pipefail
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    mkdir "$work/bin"
    cp /bin/busybox "$work/bin/"
    for name in sh cat echo env printf seq sleep yes true false; do
        ln -sf busybox "$work/bin/$name"
    done
    tar -C "$work" -c . | docker import -c 'ENV PATH=/bin' - {{ busybox }} >/dev/null

# The examples, as a user runs them
examples: image
    #!/usr/bin/env bash
    set -euo pipefail
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    example() { cargo run --locked --quiet --example "$@"; }

    example custom_sink --all-features
    example custom_runtime --all-features
    example quickstart -- {{ busybox }}

    status=0
    example run -- --root "$work/root" --name first --network none {{ busybox }} -- \
        sh -c 'echo out; echo err >&2; exit 7' >"$work/out" 2>"$work/err" || status=$?
    audit=$work/root/first/logs.jsonl
    [[ $status == 7 ]] || { echo "expected exit code 7, got $status" >&2; exit 1; }
    [[ $(cat "$work/out") == out ]]
    [[ $(cat "$work/err") == "err"$'\n'"audit: $audit" ]]
    # The audit file is readable with coreutils and jq alone.
    [[ $(jq -r 'select(.line).line' "$audit" | sort | xargs) == 'err out' ]]
    [[ $(head -c -78 "$audit" | sha256sum | cut -d' ' -f1) == $(tail -n 1 "$audit" | jq -r .sha256) ]]
    example runs -- --root "$work/root" verify first
    sed 's/"code":7/"code":0/' "$audit" >"$work/changed.jsonl"
    if example runs -- --root "$work/root" verify "$work/changed.jsonl"; then
        echo 'verify accepts a changed exit code' >&2
        exit 1
    fi

    cargo run --locked --quiet --package moat-ci -- examples/pipelines/demo.toml --image {{ busybox }} --root "$work/builds" --out "$work/reports"
    [[ -s $work/reports/report.html && -s $work/reports/junit.xml ]]

    cargo run --locked --quiet --package moat-sandbox -- token alice >"$work/clients.toml" 2>"$work/token"
    # `exec`, so that the signal at the end reaches the server.
    (exec cargo run --locked --quiet --package moat-sandbox -- \
        --clients "$work/clients.toml" --root "$work/sandbox" --listen 127.0.0.1:0 --stop-sessions >"$work/listening") &
    server=$!
    trap 'kill "$server"; wait "$server" || true; rm -rf "$work"' EXIT
    until url=$(grep -o 'http://.*' "$work/listening"); do kill -0 "$server"; sleep 0.1; done
    token=$(cat "$work/token")
    call() { curl --fail-with-body --silent --show-error -H "Authorization: Bearer $token" -H 'Content-Type: application/json' "$@"; }
    session=$(call "$url/sessions" -d '{"image": "{{ busybox }}"}' | jq -r .id)
    call "$url/sessions/$session/exec" -d '{"cmd": ["echo", "hello"]}' | tee "$work/events"
    grep -qF 'data: {"text":"hello\n"}' "$work/events"
    call "$url/sessions/$session/verify" | jq -e .verified

# Compiles the benchmarks, without optimizations: what they need is compiled for the tests anyway
bench-compile:
    cargo build --locked --quiet --benches --package moat --package bench-capture --all-features

# Instruction counts of the hot loops, compared with benches/callgrind.json (apt-get install valgrind)
instructions:
    benches/callgrind

# The package for the registry, compiled from its archive
package:
    # In the target directory of all recipes; its own would compile the dependencies once more.
    CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$PWD/target}" cargo package --locked --quiet --allow-dirty --package moat

# The library with the minimum supported Rust version; installs that toolchain
msrv:
    cargo +{{ msrv }} --version 2>/dev/null || rustup toolchain install {{ msrv }} --profile minimal --no-self-update
    cargo +{{ msrv }} check --locked --quiet --package moat --lib --all-features

# The library for each platform of `targets`
targets:
    for target in {{ targets }}; do "{{ just_executable() }}" target "$target"; done

# The library for one platform, such as aarch64-apple-darwin; installs the standard library
target name:
    #!/usr/bin/env bash
    set -euo pipefail
    rustup target add {{ name }}
    check() { cargo check --locked --quiet --package moat --lib --target {{ name }} "$@"; }
    # All features but `tls`: ring needs a C compiler for the target.
    if [[ {{ name }} != *windows* ]]; then
        check --features blocking,conformance,terminal,testing
        exit
    fi
    check --no-default-features --features blocking,conformance,docker,testing
    # The features that require Unix fail with one error, which says so.
    for features in process terminal docker,process,terminal; do
        errors=$(check --no-default-features --features "$features" 2>&1) && status=0 || status=$?
        if [[ $status == 0 || $errors != *"require Unix"* || $errors != *"due to 1 previous error"* ]]; then
            printf 'not one error with the features %s:\n%s\n' "$features" "$errors" >&2
            exit 1
        fi
    done

# Fails if the engine has containers, networks or volumes of moat; for a machine where nothing else uses it
leftovers:
    docker ps --all --filter label=moat.root
    test -z "$(docker ps --all --quiet --filter label=moat.root)"
    test -z "$(docker network ls --quiet --filter label=moat.root)"
    test -z "$(docker volume ls --quiet --filter label=moat.root)"
