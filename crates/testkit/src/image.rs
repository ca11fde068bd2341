//! The test image: the workload, compiled by the `rustc` of this machine and loaded into the
//! engine. Nothing is downloaded.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use bollard::Docker;
use bollard::query_parameters::ImportImageOptions;
use futures::TryStreamExt;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::busybox;

const WORKLOAD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/workload.rs");
const SEQUENCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/sequence.rs");
const FLAGS: &[&str] = &[
    "--edition=2024",
    "-O",
    "-Ctarget-feature=+crt-static",
    "-Cstrip=symbols",
];

/// Makes the image if the engine does not have it, and returns its name.
///
/// With `MOAT_TEST_IMAGE`, the image of that name is used. Its entrypoint must be the workload,
/// which must also be at `/workload`.
///
/// # Errors
///
/// If the workload does not compile, or the engine refuses the image.
pub async fn provide(docker: &Docker) -> Result<String, String> {
    provide_with(docker, None).await
}

/// Does the same with `/bin/sh`, if this machine has the program of [`busybox`].
///
/// # Errors
///
/// Those of [`provide`].
pub async fn provide_with_shell(docker: &Docker) -> Result<String, String> {
    let shell = busybox::is_installed().then(|| Path::new(busybox::PROGRAM));
    provide_with(docker, shell).await
}

async fn provide_with(docker: &Docker, shell: Option<&Path>) -> Result<String, String> {
    if let Ok(name) = std::env::var("MOAT_TEST_IMAGE") {
        return Ok(name);
    }
    let hash = source_hash()?;
    let name = match shell {
        None => format!("moat-test:{hash}"),
        Some(_) => format!("moat-test-shell:{hash}"),
    };
    if docker.inspect_image(&name).await.is_ok() {
        return Ok(name);
    }
    let config = json!({"Entrypoint": ["/workload"], "Env": ["PATH=/"]});
    load(docker, &name, packed(shell)?, &config).await?;
    Ok(name)
}

/// A layer that no other image has, for a container that does not start.
///
/// # Errors
///
/// If `name` is not the name of a file.
pub fn unique_layer(name: &str) -> std::io::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(0);
    header.set_mode(0o644);
    archive.append_data(&mut header, name, std::io::empty())?;
    archive.into_inner()
}

/// The only layer of the image.
///
/// # Errors
///
/// If the workload does not compile.
pub fn layer() -> Result<Vec<u8>, String> {
    packed(None)
}

fn packed(shell: Option<&Path>) -> Result<Vec<u8>, String> {
    let program = compile(&source_hash()?)?;
    pack(&program, shell).map_err(|error| format!("cannot pack the workload: {error}"))
}

/// Makes an image of a file system, with the configuration of its containers.
///
/// It is loaded, and not imported: Podman ignores the configuration of an import.
///
/// # Errors
///
/// If the engine refuses it.
pub async fn load(
    docker: &Docker,
    name: &str,
    layer: Vec<u8>,
    config: &Value,
) -> Result<(), String> {
    let archive = image_archive(name, &layer, config)
        .map_err(|error| format!("cannot pack the image {name}: {error}"))?;
    let body = bollard::body_full(archive.into());
    docker
        .import_image(ImportImageOptions::default(), body, None)
        .try_collect::<Vec<_>>()
        .await
        .map_err(|error| format!("cannot load the image {name}: {error}"))?;
    // The response of a load that fails may be a success.
    let loaded = docker.inspect_image(name).await;
    loaded.map_err(|error| format!("cannot load the image {name}: {error}"))?;
    Ok(())
}

/// An archive as `docker save` writes it.
fn image_archive(name: &str, layer: &[u8], config: &Value) -> std::io::Result<Vec<u8>> {
    let config = self::config(layer, config).to_string();
    let config_file = format!("{}.json", hex(&Sha256::digest(&config)));
    let manifest =
        json!([{"Config": config_file, "RepoTags": [name], "Layers": ["layer.tar"]}]).to_string();
    let mut archive = tar::Builder::new(Vec::new());
    for (path, bytes) in [
        (config_file.as_str(), config.as_bytes()),
        ("layer.tar", layer),
        ("manifest.json", manifest.as_bytes()),
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, path, bytes)?;
    }
    archive.into_inner()
}

/// The configuration of an image of one layer.
pub(crate) fn config(layer: &[u8], config: &Value) -> Value {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    json!({
        "architecture": architecture,
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", hex(&Sha256::digest(layer)))]},
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn source_hash() -> Result<String, String> {
    let mut hash = Sha256::new();
    for path in [WORKLOAD, SEQUENCE] {
        let source = fs::read(path).map_err(|error| format!("cannot read {path}: {error}"))?;
        hash.update(source);
    }
    hash.update(FLAGS.join(" "));
    let hash = hash.finalize();
    Ok(hex(&hash[..8]))
}

/// Compiles the workload, unless this source was compiled before.
fn compile(hash: &str) -> Result<PathBuf, String> {
    static COMPILING: Mutex<()> = Mutex::new(());
    let _alone = COMPILING.lock().unwrap_or_else(PoisonError::into_inner);
    let directory = directory()
        .map_err(|error| format!("cannot create the directory of the workload: {error}"))?;
    let program = directory.join(format!("workload-{hash}"));
    if program.exists() {
        return Ok(program);
    }
    let temporary = directory.join(format!("workload-{hash}-{}", std::process::id()));
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(&rustc)
        .args(FLAGS)
        .arg(WORKLOAD)
        .arg("-o")
        .arg(&temporary)
        .output()
        .map_err(|error| format!("cannot run {}: {error}", rustc.display()))?;
    if !output.status.success() {
        return Err(format!(
            "the workload does not compile to a static program here; give an image that has it \
             in MOAT_TEST_IMAGE\n{}",
            String::from_utf8_lossy(&output.stderr)
        ));
    }
    // If another process did the same, the programs are equal.
    fs::rename(&temporary, &program)
        .map_err(|error| format!("cannot keep the workload: {error}"))?;
    Ok(program)
}

/// `target/tmp`: tests and benchmarks run in `target/PROFILE/deps`.
fn directory() -> std::io::Result<PathBuf> {
    let program = std::env::current_exe()?;
    let target = program.ancestors().nth(3).unwrap_or(Path::new("/tmp"));
    let directory = target.join("tmp");
    fs::create_dir_all(&directory)?;
    Ok(directory)
}

fn pack(program: &Path, shell: Option<&Path>) -> std::io::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    let shell = shell.map(|shell| ("bin/sh", shell));
    for (name, program) in [("workload", program)].into_iter().chain(shell) {
        let file = File::open(program)?;
        let mut header = tar::Header::new_gnu();
        header.set_size(file.metadata()?.len());
        header.set_mode(0o755);
        archive.append_data(&mut header, name, file)?;
    }
    for (directory, mode) in [("tmp/", 0o1777), ("work/", 0o777)] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_size(0);
        header.set_mode(mode);
        archive.append_data(&mut header, directory, std::io::empty())?;
    }
    archive.into_inner()
}
