//! What managers of virtual machines answer, and the arguments of VMMs.

use hvsock_discover::fuzzing;

use crate::target::Seed;

/// Reads the rest as what the first byte chooses.
pub(crate) fn run(bytes: &[u8]) {
    if let Some((kind, bytes)) = bytes.split_first() {
        fuzzing::read(*kind, bytes);
    }
}

/// An answer of each manager.
pub(crate) fn seeds() -> Vec<Seed> {
    let seed = |kind: u8, bytes: &[u8]| [&[kind], bytes].concat();
    let xml = b"<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><!-- x --><name>a&amp;b</name>\
        <devices><vsock model='virtio'><cid auto='no' address='&#x33;'/></vsock></devices>\
        <qemu:commandline><qemu:arg value='-chardev'/><qemu:arg value='socket,id=v,path=/run/v.sock'/>\
        <qemu:arg value='-device'/><qemu:arg value='vhost-user-vsock-pci,chardev=v'/></qemu:commandline></domain>";
    // A reply to call 7 with an array of a structure of two texts.
    let mut dbus = vec![b'l', 2, 0, 1, 28, 0, 0, 0, 9, 0, 0, 0, 21, 0, 0, 0];
    dbus.extend([5, 1, b'u', 0, 7, 0, 0, 0, 8, 1, b'g', 0, 5]);
    dbus.extend(b"a(ss)\0\0\0\0\0\0");
    dbus.extend([16, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0]);
    dbus.extend(b"web\0\x03\0\0\0vm!\0");
    super::named([
        ("xml", seed(0, xml)),
        ("xdr", seed(1, &[0, 0, 0, 1, 0, 0, 0, 3, b'w', b'e', b'b', 0, 0, 0, 0, 0])),
        ("dbus", seed(2, &dbus)),
        (
            "varlink",
            seed(3, br#"{"parameters":{"name":"web","class":"vm","vSockCid":7,"leader":{"pid":4},"id":"0b2f1f0e00004000800000000000000a"},"continues":true}"#),
        ),
        (
            "incus",
            seed(4, br#"{"metadata":[{"type":"virtual-machine","name":"web","project":"p","status":"Running","config":{"volatile.vsock_id":"7","volatile.uuid":"u"}}]}"#),
        ),
        (
            "arguments",
            seed(5, b"-device\nvhost-vsock-pci,guest-cid=0x7\n-chardev\nsocket,id=a,path=/x,,y\n-device\n{\"driver\":\"vhost-user-vsock-pci\",\"chardev\":\"a\"}"),
        ),
    ])
}
