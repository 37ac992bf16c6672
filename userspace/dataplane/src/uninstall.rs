//! Taking the kernel side away: the one thing that ends what outlives the daemon.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::Serialize;

use crate::{
    bpffs::{is_bpffs, is_mount_point},
    error::DataplaneError,
    inbound, lock,
};

/// What was removed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct UninstallReport {
    /// Pins below the bpffs directory.
    pub pins: Vec<PathBuf>,
    /// A bpffs that we had mounted was unmounted.
    pub unmounted: bool,
}

/// Removes every pin below `bpffs`: links first, so that no program runs without its maps. Unmounts it if it is a mount
/// of its own. Nothing there is no error.
///
/// # Errors
///
/// A pin could not be removed; those removed before stay removed.
pub fn uninstall(bpffs: &Path) -> Result<UninstallReport, DataplaneError> {
    if !is_bpffs(bpffs) {
        return Ok(UninstallReport::default());
    }
    let lock = lock::exclusive(bpffs)?;
    let mut report = remove_pins(bpffs)?;
    drop(lock);
    if is_mount_point(bpffs) {
        nix::mount::umount2(bpffs, nix::mount::MntFlags::MNT_DETACH).map_err(|errno| DataplaneError::Bpffs {
            path: bpffs.to_path_buf(),
            what: "unmount",
            source: errno.into(),
        })?;
        report.unmounted = true;
    }
    let _ = fs::remove_dir(bpffs);
    Ok(report)
}

/// The pins alone; the directory stays.
pub fn remove_pins(bpffs: &Path) -> Result<UninstallReport, DataplaneError> {
    let mut report = UninstallReport::default();
    inbound::release_all_devices(&bpffs.join("links"))?;
    for folder in ["links", "maps"] {
        let folder = bpffs.join(folder);
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(source) => return Err(DataplaneError::Pin { path: folder, source }),
        };
        for entry in entries {
            let path = entry
                .map_err(|source| DataplaneError::Pin {
                    path: folder.clone(),
                    source,
                })?
                .path();
            fs::remove_file(&path).map_err(|source| DataplaneError::Pin {
                path: path.clone(),
                source,
            })?;
            report.pins.push(path);
        }
        fs::remove_dir(&folder).map_err(|source| DataplaneError::Pin {
            path: folder.clone(),
            source,
        })?;
    }
    Ok(report)
}
