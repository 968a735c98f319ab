//! Selects the filesystems to freeze, and their order, from `/proc/self/mountinfo`.

use std::collections::HashSet;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use crate::wire::freeze::{self, Skipped};

/// Filesystem types that are on disks although they have no single device.
const WITHOUT_DEVICE: [&[u8]; 2] = [b"btrfs", b"bcachefs"];

/// A mount, as the kernel lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// The mount id (statx(2), `stx_mnt_id`).
    pub id: u64,
    /// The filesystem's device: major and minor number.
    pub device: (u32, u32),
    /// The mount point.
    pub point: PathBuf,
    /// The type, such as ext4.
    pub kind: String,
    /// The source, such as /dev/vda1.
    pub source: String,
    /// Whether the filesystem itself is read-only, regardless of the mount's options.
    pub read_only: bool,
}

/// A filesystem to be frozen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filesystem {
    /// Its mounts, the preferred one first. A mount may be covered by another one.
    pub mounts: Vec<Mount>,
}

impl Filesystem {
    /// The wire format.
    pub fn to_wire(&self) -> freeze::Filesystem {
        let first = self.mounts.first();
        first.map(Mount::to_wire).unwrap_or_default()
    }
}

impl Mount {
    fn to_wire(&self) -> freeze::Filesystem {
        freeze::Filesystem {
            mount: self.point.display().to_string(),
            kind: self.kind.clone(),
            source: self.source.clone(),
        }
    }

    /// Parses a line of the table: `36 35 98:0 /root /point rw,noatime shared:1 - ext4 /dev/x
    /// rw,…`, with any number of optional fields before the hyphen.
    fn parse(line: &[u8]) -> Option<Self> {
        let mut fields = line.split(|byte| *byte == b' ');
        let mut number = || std::str::from_utf8(fields.next()?).ok()?.parse().ok();
        let (id, _parent): (u64, Option<u64>) = (number()?, number());
        let (major, minor) = std::str::from_utf8(fields.next()?).ok()?.split_once(':')?;
        let device = (major.parse().ok()?, minor.parse().ok()?);
        let point = PathBuf::from(OsString::from_vec(unescape(fields.nth(1)?)));
        let mut fields = fields.skip_while(|field| *field != b"-").skip(1);
        let mut text = || Some(String::from_utf8_lossy(&unescape(fields.next()?)).into_owned());
        let (kind, source, options) = (text()?, text()?, text()?);
        Some(Self {
            id,
            device,
            point,
            kind,
            source,
            read_only: options.split(',').any(|option| option == "ro"),
        })
    }

    /// Whether it is on a local disk. All other filesystems (in memory, remote, the kernel's own)
    /// have an anonymous device number with major 0.
    fn on_disk(&self) -> bool {
        self.device.0 != 0 || WITHOUT_DEVICE.contains(&self.kind.as_bytes())
    }
}

/// Decodes a field: the kernel writes space, tab, newline and backslash as octal escapes.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, after)) = rest.split_first() {
        let digits = after.get(..3).filter(|_| first == b'\\');
        let code = digits.and_then(|digits| {
            let digits = std::str::from_utf8(digits).ok()?;
            u8::from_str_radix(digits, 8).ok()
        });
        bytes.push(code.unwrap_or(first));
        rest = match code {
            Some(_) => &after[3..],
            None => after,
        };
    }
    bytes
}

/// Parses the table. Its order is the order of mounting.
pub fn parse(table: &[u8]) -> Vec<Mount> {
    let lines = table.split(|byte| *byte == b'\n');
    lines.filter_map(Mount::parse).collect()
}

/// The filesystems to freeze, and those on a disk that cannot be frozen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// In order: the last mounted comes first. A filesystem that is stored on another one, as
    /// with a loop device, was mounted later and writes to the other one while it is being frozen.
    pub freeze: Vec<Filesystem>,
    /// Filesystems on a disk that are skipped, with the reasons.
    pub skipped: Vec<Skipped>,
}

/// Selects the filesystems at the mount points in `wanted`, or all if it is empty. A filesystem with
/// several mounts is selected once.
///
/// # Errors
///
/// [`NotFreezable`] with a wanted mount point that has no filesystem to freeze.
pub fn select(mounts: &[Mount], wanted: &[PathBuf]) -> Result<Selection, NotFreezable> {
    let mut selection = Selection::default();
    let mut seen = HashSet::new();
    for mount in mounts.iter().filter(|mount| mount.on_disk()) {
        if !seen.insert(mount.device) {
            continue;
        }
        let same = |other: &&Mount| other.device == mount.device;
        let mut mounts: Vec<Mount> = mounts.iter().filter(same).cloned().collect();
        if !wanted.is_empty() {
            let is_wanted = |mount: &Mount| wanted.contains(&mount.point);
            if !mounts.iter().any(is_wanted) {
                continue;
            }
            // The requested mount point comes first.
            mounts.sort_by_key(|mount| !is_wanted(mount));
        }
        match mount.read_only {
            true => selection.skipped.push(Skipped {
                filesystem: mounts.first().map(Mount::to_wire),
                why: "it is read-only".to_owned(),
            }),
            false => selection.freeze.push(Filesystem { mounts }),
        }
    }
    selection.freeze.reverse();
    let points: HashSet<_> = selection
        .freeze
        .iter()
        .flat_map(|one| &one.mounts)
        .map(|mount| &mount.point)
        .collect();
    match wanted.iter().find(|wanted| !points.contains(wanted)) {
        Some(missing) => Err(NotFreezable(missing.clone())),
        None => Ok(selection),
    }
}

/// A requested mount point that cannot be frozen.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} is not the mount point of a writable filesystem on a disk", .0.display())]
pub struct NotFreezable(pub PathBuf);

/// Normalizes a path to the form of the table: absolute, without repeated or trailing slashes.
pub fn normalize(path: &str) -> Option<PathBuf> {
    let path = Path::new(path);
    path.is_absolute().then(|| path.components().collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TABLE: &[u8] = b"\
22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw,errors=remount-ro
23 22 0:21 / /proc rw,nosuid shared:12 - proc proc rw
24 22 0:5 / /dev rw shared:2 - devtmpfs udev rw,size=1k
25 22 254:17 / /srv/my\\040data rw - xfs /dev/vdb1 rw
26 22 11:0 / /media/cdrom ro - iso9660 /dev/sr0 ro
27 22 0:44 / /mnt/nfs rw - nfs4 server:/export rw
28 22 0:40 /sub /home rw - btrfs /dev/vdc rw
29 25 7:0 / /srv/my\\040data/image rw - ext4 /dev/loop0 rw
30 22 254:1 /var/lib /bind rw shared:1 - ext4 /dev/vda1 rw
31 22 254:33 / /ro-view ro - ext4 /dev/vdd rw
nonsense
";

    fn points(selection: &Selection) -> Vec<String> {
        let freeze = selection.freeze.iter();
        freeze.map(|one| one.to_wire().mount).collect()
    }

    #[test]
    fn filesystems_on_disks_are_frozen_once_each_and_the_last_mounted_first() {
        let mounts = parse(TABLE);
        assert_eq!(mounts.len(), 10);
        let all = select(&mounts, &[]).unwrap();
        let expected = [
            "/ro-view",
            "/srv/my data/image",
            "/home",
            "/srv/my data",
            "/",
        ];
        assert_eq!(points(&all), expected);
        let skipped: Vec<_> = all.skipped.iter().collect();
        assert_eq!(skipped.len(), 1);
        assert_eq!(
            skipped[0].filesystem.as_ref().unwrap().mount,
            "/media/cdrom"
        );
    }

    #[test]
    fn a_filesystem_is_found_by_any_of_its_mount_points() {
        let mounts = parse(TABLE);
        let wanted = [PathBuf::from("/bind"), PathBuf::from("/home")];
        assert_eq!(
            points(&select(&mounts, &wanted).unwrap()),
            ["/home", "/bind"]
        );
        for not in ["/proc", "/media/cdrom", "/srv", "/mnt/nfs"] {
            let wanted = [PathBuf::from(not)];
            assert_eq!(select(&mounts, &wanted), Err(NotFreezable(not.into())));
        }
    }

    /// A guest may have 100,000 mounts (`fs.mount-max`), most of them of one disk.
    #[test]
    fn a_disk_with_very_many_mounts_is_selected_once_and_at_once() {
        let line = |id| format!("{id} 1 254:1 / /m{id} rw - ext4 /dev/vda rw\n");
        let table: String = (0..30_000).map(line).collect();
        let selection = select(&parse(table.as_bytes()), &[]).unwrap();
        assert_eq!(points(&selection), ["/m0"]);
    }

    #[test]
    fn paths_are_normalized() {
        assert_eq!(normalize("/srv//data/"), Some("/srv/data".into()));
        assert_eq!(normalize("srv"), None);
    }

    fn escaped(path: &str) -> String {
        let escape = |c: char| match c {
            ' ' | '\t' | '\n' | '\\' => format!("\\{:03o}", u32::from(c)),
            c => c.to_string(),
        };
        path.chars().map(escape).collect()
    }

    proptest! {
        #[test]
        fn any_table_is_parsed_and_each_device_is_frozen_once(
            mounts in proptest::collection::vec(
                (0..4u32, 0..4u32, "/[ a\\\\\t\nä]{0,6}", any::<bool>(), 0..3usize), 0..20),
        ) {
            let mut table = String::new();
            for (id, (major, minor, point, ro, optional)) in mounts.iter().enumerate() {
                let (point, optional) = (escaped(point), " shared:1".repeat(*optional));
                let ro = if *ro { "ro" } else { "rw,x=ro" };
                table += &format!("{id} 1 {major}:{minor} / {point} rw{optional} - ext4 /dev/x {ro}\n");
            }
            let read = parse(table.as_bytes());
            prop_assert_eq!(read.len(), mounts.len());
            for (read, (major, minor, point, ro, _)) in read.iter().zip(&mounts) {
                prop_assert_eq!(read.device, (*major, *minor));
                prop_assert_eq!(&read.point, Path::new(point));
                prop_assert_eq!(read.read_only, *ro);
            }
            let selection = select(&read, &[]).unwrap();
            let firsts: Vec<u64> = selection.freeze.iter().map(|one| one.mounts[0].id).collect();
            prop_assert!(firsts.is_sorted_by(|a, b| a > b), "{:?}", firsts);
            let devices: HashSet<_> = selection.freeze.iter().map(|one| one.mounts[0].device).collect();
            prop_assert_eq!(devices.len(), selection.freeze.len());
            prop_assert!(devices.iter().all(|(major, _)| *major != 0));
        }

        #[test]
        fn any_bytes_parse(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = select(&parse(&bytes), &[]);
        }
    }
}
