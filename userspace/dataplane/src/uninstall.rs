//! Taking the kernel side away: the one thing that ends what outlives the daemon.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::Serialize;

use crate::{
    bpffs::{is_bpffs, is_our_mount, others},
    error::DataplaneError,
    inbound,
    lock::Lock,
};

/// What was removed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct UninstallReport {
    /// Pins below the bpffs directory.
    pub pins: Vec<PathBuf>,
    /// A bpffs that we had mounted was unmounted.
    pub unmounted: bool,
}

/// Removes every pin of ours below `bpffs`: links first, so that no program runs without its maps. Unmounts it if we had mounted
/// it and nobody else uses it. Nothing there is no error; what others pinned beside stays.
///
/// # Errors
///
/// A pin could not be removed; those removed before stay removed.
pub fn uninstall(bpffs: &Path) -> Result<UninstallReport, DataplaneError> {
    if !is_bpffs(bpffs) {
        return Ok(UninstallReport::default());
    }
    let lock = Lock::exclusive(bpffs)?;
    let mut report = remove_pins(bpffs)?;
    drop(lock);
    if is_our_mount(bpffs) && others(bpffs).is_ok_and(|others| others.is_none()) {
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

/// The pins alone, in `links/` and `maps/`, where all is ours whatever its name; the directory stays.
pub fn remove_pins(bpffs: &Path) -> Result<UninstallReport, DataplaneError> {
    let mut report = UninstallReport::default();
    inbound::release_all_devices(&bpffs.join("links"))?;
    for folder in ["links", "maps"].map(|name| bpffs.join(name)) {
        remove_tree(&folder, &mut report.pins)?;
    }
    Ok(report)
}

/// A pin, or a folder with all that is below it. bpffs has no symbolic links to elsewhere that this could follow.
fn remove_tree(path: &Path, removed: &mut Vec<PathBuf>) -> Result<(), DataplaneError> {
    let kind = match fs::symlink_metadata(path) {
        Ok(found) => found.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(pin_error(path)(source)),
    };
    if kind.is_dir() {
        for entry in entries(path)? {
            remove_tree(&entry, removed)?;
        }
        return fs::remove_dir(path).map_err(pin_error(path));
    }
    fs::remove_file(path).map_err(pin_error(path))?;
    removed.push(path.to_path_buf());
    Ok(())
}

/// What is in a folder, listed before anything is removed from it.
fn entries(folder: &Path) -> Result<Vec<PathBuf>, DataplaneError> {
    let listed: io::Result<Vec<PathBuf>> =
        fs::read_dir(folder).and_then(|entries| entries.map(|entry| entry.map(|entry| entry.path())).collect());
    listed.map_err(pin_error(folder))
}

fn pin_error(path: &Path) -> impl FnOnce(io::Error) -> DataplaneError {
    let path = path.to_path_buf();
    move |source| DataplaneError::Pin { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_in_folders_go_links_before_maps_and_others_stay() {
        let place = std::env::temp_dir().join(format!("weft-uninstall-{}", std::process::id()));
        for file in [
            "maps/config",
            "maps/other/x",
            "others/x",
            "links/netns-7/sk_lookup",
            "links/connect4",
        ] {
            let file = place.join(file);
            fs::create_dir_all(file.parent().expect("below the place")).expect("made");
            fs::write(file, "").expect("written");
        }
        fs::create_dir(place.join("links/dev-empty")).expect("made");
        let report = remove_pins(&place).expect("removed");
        assert_eq!(report.pins.len(), 4);
        let is_link = |pin: &PathBuf| pin.starts_with(place.join("links"));
        assert!(report.pins[..2].iter().all(is_link), "{report:?}");
        assert_eq!(entries(&place).expect("listed"), [place.join("others")]);
        assert_eq!(
            remove_pins(&place).expect("nothing is no error").pins,
            Vec::<PathBuf>::new()
        );
        fs::remove_dir_all(place).expect("removed");
    }
}
