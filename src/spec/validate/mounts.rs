//! Checks of the mounts.

use std::collections::HashSet;
use std::path::{Component, Path};

use super::{Quoted, check_absolute_path};
use crate::spec::{InvalidSpec, Mount, Settings};

impl Settings {
    pub(super) fn validate_mounts(&self) -> Result<(), InvalidSpec> {
        let mut targets = HashSet::new();
        for mount in &self.mounts {
            let target = mount.target();
            check_absolute_path("mounts", "the target", target)?;
            let components: Vec<_> = Path::new(target).components().collect();
            if components.contains(&Component::ParentDir) {
                refuse!("mounts", "{} contains \"..\"; resolve it", Quoted(target));
            }
            if components == [Component::RootDir] {
                refuse!("mounts", "\"/\" of the container cannot be a target");
            }
            if !targets.insert(components) {
                refuse!("mounts", "{} is the target of two mounts", Quoted(target));
            }
            check_source(mount)?;
        }
        Ok(())
    }
}

fn check_source(mount: &Mount) -> Result<(), InvalidSpec> {
    match mount {
        Mount::Bind { source, .. } => {
            let Some(source) = source.to_str() else {
                refuse!("mounts", "{} is not UTF-8", source.display());
            };
            check_absolute_path("mounts", "the source", source)?;
        }
        Mount::Volume { name, .. } if !is_volume_name(name) => refuse!(
            "mounts",
            "{} is not a volume name: two or more letters, digits, '_', '.' and '-'; to mount a \
             directory of the host, use bind",
            Quoted(name)
        ),
        Mount::Tmpfs {
            target,
            size: Some(0),
            ..
        } => {
            let target = Quoted(target);
            refuse!("mounts", "the tmpfs at {target} has a size of 0 bytes");
        }
        Mount::Volume { .. } | Mount::Tmpfs { .. } => {}
    }
    Ok(())
}

fn is_volume_name(name: &str) -> bool {
    let ok = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    name.len() > 1 && name.starts_with(|c: char| c.is_ascii_alphanumeric()) && name.chars().all(ok)
}
