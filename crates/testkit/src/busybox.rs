//! An image with a shell and an editor: the static busybox of this machine, loaded into the
//! engine. Nothing is downloaded.

use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use bollard::Docker;
use serde_json::json;

use crate::harness::Need;
use crate::image::load;

pub(crate) const PROGRAM: &str = "/bin/busybox";

/// True if this machine has the program.
pub fn is_installed() -> bool {
    Path::new(PROGRAM).exists()
}

/// The program; required with `MOAT_ENGINE=required`.
pub fn need() -> &'static Need {
    static NEED: OnceLock<Need> = OnceLock::new();
    NEED.get_or_init(|| match crate::engine::is_required() || is_installed() {
        true => Ok(()),
        false => Err(format!("no static {PROGRAM} (package busybox-static)")),
    })
}

/// Makes the image if the engine does not have it, and returns its name.
///
/// # Errors
///
/// If the image cannot be made.
pub async fn provide(docker: &Docker) -> Result<String, String> {
    let name = "moat-test-busybox:1";
    if docker.inspect_image(name).await.is_ok() {
        return Ok(name.into());
    }
    let archive = pack().map_err(|error| format!("cannot pack {PROGRAM}: {error}"))?;
    load(docker, name, archive, &json!({"Env": ["PATH=/bin"]})).await?;
    Ok(name.into())
}

fn pack() -> std::io::Result<Vec<u8>> {
    let applets = Command::new(PROGRAM).arg("--list").output()?.stdout;
    let mut archive = tar::Builder::new(Vec::new());
    for directory in ["bin/", "tmp/"] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_size(0);
        header.set_mode(0o1777);
        archive.append_data(&mut header, directory, std::io::empty())?;
    }
    let file = File::open(PROGRAM)?;
    let mut header = tar::Header::new_gnu();
    header.set_size(file.metadata()?.len());
    header.set_mode(0o755);
    archive.append_data(&mut header, "bin/busybox", file)?;
    for applet in String::from_utf8_lossy(&applets).lines() {
        if applet == "busybox" {
            continue;
        }
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        archive.append_link(&mut header, format!("bin/{applet}"), "busybox")?;
    }
    archive.into_inner()
}
