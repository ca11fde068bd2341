//! An image with a shell, an editor and the like: the static busybox of this machine, imported into
//! the engine. Nothing is downloaded.

use std::fs::File;
use std::path::Path;
use std::process::Command;

use bollard::Docker;

use super::image::import;

const PROGRAM: &str = "/bin/busybox";

/// Whether there is one here.
pub fn is_here() -> bool {
    Path::new(PROGRAM).exists()
}

/// The image's name.
pub async fn provide(docker: &Docker) -> Result<String, String> {
    let name = "moat-test-busybox:1";
    if docker.inspect_image(name).await.is_ok() {
        return Ok(name.into());
    }
    let archive = pack().map_err(|error| format!("cannot pack {PROGRAM}: {error}"))?;
    import(docker, name, archive, &["ENV PATH=/bin"]).await?;
    Ok(name.into())
}

fn pack() -> std::io::Result<Vec<u8>> {
    let applets = Command::new(PROGRAM).arg("--list").output()?.stdout;
    let mut archive = tar::Builder::new(Vec::new());
    for dir in ["bin/", "tmp/"] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_size(0);
        header.set_mode(0o1777);
        archive.append_data(&mut header, dir, std::io::empty())?;
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
