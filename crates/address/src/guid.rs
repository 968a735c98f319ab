//! The two GUIDs of an address, their well-known values, and their text form.

use std::fmt;
use std::str::FromStr;

use uuid::{Uuid, uuid};

/// The GUID that maps vsock ports to service ids: the port replaces the first 32 bits.
///
/// Source: Microsoft's "Make your own integration services" and Linux `hyperv_transport.c`.
pub const VSOCK_TEMPLATE: ServiceId = ServiceId(uuid!("00000000-facb-11e6-bd58-64006a7986d3"));

/// The namespace from which a container's [`VmId`] is derived (hcsshim, `hvsocketaddr.go`).
const CONTAINER_NAMESPACE: Uuid = uuid!("cab70344-facb-41e4-b5e5-ab6592283e6e");

/// The bits of the template that are not the port. Ids on the template have these bits in common.
const TEMPLATE_MASK: u128 = u128::MAX >> 32;

/// The first port of the range for aliases of ids off the template.
const ALIASES: u32 = 0x4000_0000;

/// Names a partition, or by a wildcard a set of partitions relative to the caller.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VmId(Uuid);

/// Names a service.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceId(Uuid);

/// Text that is not a GUID in any common format.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` is not a GUID; write 32 hexadecimal digits, with or without hyphens, such as \
     999e53d4-3d5c-4c3e-8779-bed06ec056e1"
)]
pub struct ParseGuidError {
    text: String,
}

impl VmId {
    /// `HV_GUID_ZERO`: the same value as [`VmId::WILDCARD`].
    pub const ZERO: VmId = VmId(Uuid::nil());
    /// `HV_GUID_WILDCARD`: a listener bound to it accepts from every partition that may reach it.
    pub const WILDCARD: VmId = VmId::ZERO;
    /// `HV_GUID_BROADCAST`: reserved; invalid for connect and listen.
    pub const BROADCAST: VmId = VmId(Uuid::max());
    /// `HV_GUID_CHILDREN`: a listener bound to it accepts from the partition's children.
    pub const CHILDREN: VmId = VmId(uuid!("90db8b89-0d35-4f79-8ce9-49ea0ac8b7cd"));
    /// `HV_GUID_LOOPBACK`: the caller's own partition.
    pub const LOOPBACK: VmId = VmId(uuid!("e0e16197-dd56-4a10-9195-5ee7a155a838"));
    /// `HV_GUID_PARENT`: the caller's parent partition.
    pub const PARENT: VmId = VmId(uuid!("a42e7cda-d03f-480c-9cc2-a4de20abb878"));
    /// `HV_GUID_SILOHOST`: the host of the caller's container.
    pub const SILOHOST: VmId = VmId(uuid!("36bd0c5c-7276-4223-88ba-7d03b654c568"));

    /// The well-known values and their lower-case words.
    ///
    /// `zero` and `wildcard` are the same value; it prints as `wildcard`.
    pub const WELL_KNOWN: [(&'static str, VmId); 7] = [
        ("wildcard", VmId::WILDCARD),
        ("zero", VmId::ZERO),
        ("broadcast", VmId::BROADCAST),
        ("children", VmId::CHILDREN),
        ("loopback", VmId::LOOPBACK),
        ("parent", VmId::PARENT),
        ("silohost", VmId::SILOHOST),
    ];

    /// Derives the id of the container with this runtime id, as Windows does: the UUIDv5 of the
    /// upper-case id in UTF-16LE (hcsshim, `hvsocketaddr.go`).
    pub fn of_container(container_id: &str) -> VmId {
        let utf16le: Vec<u8> = container_id
            .to_uppercase()
            .encode_utf16()
            .flat_map(u16::to_le_bytes)
            .collect();
        VmId(Uuid::new_v5(&CONTAINER_NAMESPACE, &utf16le))
    }

    /// Derives the id by which the host knows the container `child` of the virtual machine `vm`: the
    /// UUIDv5 of the child's own id (its 16 bytes in the order of RFC 9562) in the namespace of the
    /// virtual machine's id. So no virtual machine can choose the id of another partition.
    pub fn of_nested(vm: VmId, child: VmId) -> VmId {
        VmId(Uuid::new_v5(&vm.0, child.0.as_bytes()))
    }

    /// The word for a well-known value; `None` for any other value.
    pub fn well_known_name(self) -> Option<&'static str> {
        Self::WELL_KNOWN
            .iter()
            .find(|(_, id)| *id == self)
            .map(|(word, _)| *word)
    }

    /// Whether this is a well-known value rather than the id of one partition.
    pub fn is_well_known(self) -> bool {
        self.well_known_name().is_some()
    }
}

impl ServiceId {
    /// No service: the service of an address that was not bound explicitly.
    pub const ZERO: ServiceId = ServiceId(Uuid::nil());

    /// The id of a vsock port, by [`VSOCK_TEMPLATE`].
    pub const fn from_port(port: u32) -> ServiceId {
        let template = VSOCK_TEMPLATE.0.as_u128();
        ServiceId(Uuid::from_u128(
            template & TEMPLATE_MASK | (port as u128) << 96,
        ))
    }

    /// The vsock port of this id, if it is on [`VSOCK_TEMPLATE`].
    pub const fn port(self) -> Option<u32> {
        let bits = self.0.as_u128();
        if bits & TEMPLATE_MASK == VSOCK_TEMPLATE.0.as_u128() & TEMPLATE_MASK {
            Some((bits >> 96) as u32)
        } else {
            None
        }
    }

    /// The alias of an id off [`VSOCK_TEMPLATE`]: the vsock port by which `AF_VSOCK` programs reach
    /// it, in 0x4000_0000..=0x7fff_ffff. A Linux guest of Hyper-V cannot listen on higher ports.
    ///
    /// The alias is a hash of the id, so every program computes the same one. Read the digits of
    /// the GUID as two numbers of 16 hexadecimal digits, `first` and `last`. The alias is
    /// 0x4000_0000 plus the upper 30 bits of `mix(first ^ mix(last))`, where `mix` is the 64-bit
    /// finalizer of MurmurHash3. An id on the template has a port and no alias. The zero GUID,
    /// which is no service, has neither.
    ///
    /// Two ids have the same alias with a probability of about 1 in 10^9. A registry accepts only
    /// one of them.
    pub const fn vsock_alias(self) -> Option<u32> {
        if self.port().is_some() || self.0.is_nil() {
            return None;
        }
        let (first, last) = self.0.as_u64_pair();
        Some(ALIASES + (mix(first ^ mix(last)) >> 34) as u32)
    }

    /// The vsock port by which `AF_VSOCK` programs reach this id: its port on the template, or else
    /// its alias. Only the zero GUID has none.
    pub const fn port_for_guests(self) -> Option<u32> {
        match self.port() {
            Some(port) => Some(port),
            None => self.vsock_alias(),
        }
    }
}

/// The 64-bit finalizer of MurmurHash3 (Austin Appleby, public domain): a bijection in which each
/// output bit depends on each input bit.
const fn mix(mut bits: u64) -> u64 {
    bits ^= bits >> 33;
    bits = bits.wrapping_mul(0xff51_afd7_ed55_8ccd);
    bits ^= bits >> 33;
    bits = bits.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    bits ^ bits >> 33
}

/// The methods that both GUID types share. The types are distinct so that they cannot be mixed up.
macro_rules! guid_type {
    ($name:ident) => {
        impl $name {
            /// The id with this value.
            pub const fn from_uuid(uuid: Uuid) -> Self {
                Self(uuid)
            }

            /// The value of this id.
            pub const fn uuid(self) -> Uuid {
                self.0
            }

            /// A fresh random id (version 4).
            pub fn random() -> Self {
                Self(Uuid::new_v4())
            }

            /// The 16 bytes in Microsoft's order, with the first three fields little-endian.
            pub fn to_guid_bytes(self) -> [u8; 16] {
                self.0.to_bytes_le()
            }

            /// The id with these 16 bytes in Microsoft's order. Every value is valid.
            pub fn from_guid_bytes(bytes: [u8; 16]) -> Self {
                Self(Uuid::from_bytes_le(bytes))
            }
        }

        impl FromStr for $name {
            type Err = ParseGuidError;

            /// Parses every common format: either case, with or without hyphens, in braces or
            /// parentheses, or as a `urn:uuid:`.
            fn from_str(text: &str) -> Result<Self, ParseGuidError> {
                parse(text).map(Self)
            }
        }

        impl fmt::Display for $name {
            /// Lower case with hyphens.
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0.hyphenated(), f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0.hyphenated())
            }
        }

        impl From<Uuid> for $name {
            fn from(uuid: Uuid) -> Self {
                Self(uuid)
            }
        }
    };
}

guid_type!(VmId);
guid_type!(ServiceId);

fn parse(text: &str) -> Result<Uuid, ParseGuidError> {
    let trimmed = text.trim();
    let bare = trimmed
        .strip_prefix('(')
        .and_then(|rest| rest.strip_suffix(')'))
        .unwrap_or(trimmed);
    Uuid::try_parse(bare).map_err(|_| ParseGuidError {
        text: text.chars().take(64).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_template_has_the_port_in_its_first_field() {
        let id = ServiceId::from_port(2761);
        assert_eq!(id.to_string(), "00000ac9-facb-11e6-bd58-64006a7986d3");
        assert_eq!(id.port(), Some(2761));
        assert_eq!(ServiceId::from_port(u32::MAX).port(), Some(u32::MAX));
        assert_eq!(ServiceId::from_port(0), VSOCK_TEMPLATE);
        assert_eq!(ServiceId::random().port(), None);
    }

    // Computed with the Python program in docs/registry.md.
    #[test]
    fn an_id_off_the_template_has_an_alias_that_depends_on_the_id_only() {
        for (text, alias) in [
            ("999e53d4-3d5c-4c3e-8779-bed06ec056e1", 1_461_511_273),
            ("a5201c21-2770-4c11-a68e-f182edb29220", 1_308_992_229),
            ("0b2f1f0e-0000-4000-8000-000000000001", 2_077_976_510),
            ("00112233-4455-6677-8899-aabbccddeeff", 1_432_892_085),
            ("ffffffff-ffff-ffff-ffff-ffffffffffff", 1_323_516_477),
        ] {
            let id: ServiceId = text.parse().unwrap();
            assert_eq!(id.vsock_alias(), Some(alias), "{text}");
            assert_eq!(id.port_for_guests(), Some(alias), "{text}");
            assert!((0x4000_0000..=0x7fff_ffff).contains(&alias));
        }
        let on_the_template = ServiceId::from_port(2761);
        assert_eq!(on_the_template.vsock_alias(), None);
        assert_eq!(on_the_template.port_for_guests(), Some(2761));
        assert_eq!(ServiceId::ZERO.port_for_guests(), None);
    }

    /// Vendors number their services consecutively, which must not make collisions more likely.
    #[test]
    fn consecutive_ids_have_no_more_alias_collisions_than_random_ones() {
        let first: ServiceId = "5ca1ab1e-0000-4000-8000-000000000000".parse().unwrap();
        let mut collisions = 0;
        for step in [1u128, 1 << 64, 1 << 96] {
            let ids = (0..10_000).map(|n| first.uuid().as_u128().wrapping_add(n * step));
            let ids = ids.map(|bits| ServiceId::from_uuid(Uuid::from_u128(bits)));
            let mut aliases: Vec<u32> = ids.filter_map(ServiceId::vsock_alias).collect();
            aliases.sort_unstable();
            collisions += aliases.windows(2).filter(|two| two[0] == two[1]).count();
        }
        // About one in 20 such sets has a collision.
        assert!(collisions <= 1, "{collisions}");
    }

    #[test]
    fn guid_bytes_are_in_microsofts_mixed_order() {
        let id: ServiceId = "00112233-4455-6677-8899-aabbccddeeff".parse().unwrap();
        let bytes = [
            0x33, 0x22, 0x11, 0x00, 0x55, 0x44, 0x77, 0x66, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd,
            0xee, 0xff,
        ];
        assert_eq!(id.to_guid_bytes(), bytes);
        assert_eq!(ServiceId::from_guid_bytes(bytes), id);
    }

    #[test]
    fn every_common_format_parses_to_the_same_id() {
        let want = VmId::PARENT;
        for text in [
            "a42e7cda-d03f-480c-9cc2-a4de20abb878",
            "A42E7CDA-D03F-480C-9CC2-A4DE20ABB878",
            "{a42e7cda-d03f-480c-9cc2-a4de20abb878}",
            "(A42E7CDA-D03F-480C-9CC2-A4DE20ABB878)",
            "a42e7cdad03f480c9cc2a4de20abb878",
            "urn:uuid:a42e7cda-d03f-480c-9cc2-a4de20abb878",
            "  a42e7cda-d03f-480c-9cc2-a4de20abb878\n",
        ] {
            assert_eq!(text.parse::<VmId>().as_ref(), Ok(&want), "{text}");
        }
        for text in [
            "",
            "parent",
            "a42e7cda-d03f-480c-9cc2-a4de20abb87",
            "{}",
            "(",
            "()",
        ] {
            assert!(text.parse::<VmId>().is_err(), "{text}");
        }
    }

    // SHA-1 over the namespace and UTF-16LE text, computed with Python's uuid module:
    // uuid5(namespace, bytes) of "MYCONTAINER".encode("utf-16-le").
    #[test]
    fn a_container_id_has_the_vm_id_that_windows_derives() {
        let id = VmId::of_container("mycontainer");
        assert_eq!(id.to_string(), "c31d2efc-28cb-56be-be6c-35d8f17e536c");
        assert_eq!(VmId::of_container("MyContainer"), id);
    }

    // Computed with Python's uuid module: uuid5(vm, child.bytes), where `child` is the id of the container
    // `mycontainer`.
    #[test]
    fn the_id_of_a_container_in_a_vm_depends_on_both_ids() {
        let vm: VmId = "0b2f1f0e-0000-4000-8000-000000000001".parse().unwrap();
        let child = VmId::of_container("mycontainer");
        let nested = VmId::of_nested(vm, child);
        assert_eq!(nested.to_string(), "7aa801af-860e-51e2-858d-fb0fb6fa8df7");
        assert!(!nested.is_well_known());
        assert_ne!(nested, VmId::of_nested(VmId::random(), child));
        assert_ne!(nested, VmId::of_nested(vm, VmId::random()));
    }

    #[test]
    fn wildcard_and_zero_are_one_value_that_prints_as_wildcard() {
        assert_eq!(VmId::ZERO.well_known_name(), Some("wildcard"));
        assert_eq!(VmId::SILOHOST.well_known_name(), Some("silohost"));
        assert!(!VmId::random().is_well_known());
    }
}
