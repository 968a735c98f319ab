//! QEMU's command line.

use std::path::Path;

use crate::config::{Accelerator, PORTS};
use crate::vmm::driver::{Boot, SPARE_MONITOR};

/// The arguments that boot a guest.
pub fn arguments(boot: &Boot<'_>) -> Vec<String> {
    let (config, folder) = (boot.config, boot.folder);
    let mut arguments = Vec::new();
    let mut add = |words: &[&str]| arguments.extend(words.iter().map(|word| (*word).to_owned()));
    let text = |path: &Path| path.display().to_string();
    // A comma separates options, and is doubled within a value.
    let escaped = |path: &Path| text(path).replace(',', ",,");
    let own = |name: &str| escaped(&folder.join(name));
    add(&["-name", &config.name, "-nodefaults", "-no-user-config"]);
    add(&["-display", "none"]);
    add(&Accelerator::chosen(config).arguments());
    add(&["-machine", "q35,memory-backend=memory"]);
    // vhost-user requires shared memory.
    let memory = format!(
        "memory-backend-memfd,id=memory,share=on,size={}M",
        config.memory_mib
    );
    add(&["-object", &memory, "-m", &format!("{}M", config.memory_mib)]);
    add(&["-smp", &config.processors.to_string()]);
    add(&["-kernel", &text(&boot.kernel.image)]);
    add(&["-initrd", &text(&folder.join("initramfs"))]);
    // Boots faster without mitigations and with few messages. On a busy machine the kernel's check of the timer
    // may fail, and the kernel panics.
    let line = "console=ttyS0 loglevel=4 mitigations=off nokaslr panic=0 no_timer_check";
    add(&["-append", line]);
    let console = format!("file,id=console,path={}", own("console"));
    add(&["-chardev", &console, "-serial", "chardev:console"]);
    let monitor = format!("socket,id=monitor,path={},server=on,wait=off", own("qmp"));
    add(&["-chardev", &monitor, "-mon", "chardev=monitor,mode=control"]);
    // A monitor serves one client at a time, and the first one is the guest's own.
    let spare = format!("unix:{},server=on,wait=off", own(SPARE_MONITOR));
    add(&["-qmp", &spare]);
    // Port 0 is reserved for a console.
    let ports = format!("virtio-serial-pci,max_ports={}", PORTS + 1);
    add(&["-device", &ports]);
    for index in 0..PORTS {
        let path = own(&format!("port{index}"));
        let port = format!("socket,id=port{index},path={path},server=on,wait=off");
        add(&["-chardev", &port]);
        let device = format!("virtserialport,chardev=port{index},name=hvsock.{index}");
        add(&["-device", &device]);
    }
    if let Some(vsock) = &config.vsock {
        let backend = format!("socket,id=vsock,path={}", escaped(&vsock.socket));
        add(&["-chardev", &backend]);
        // A separate PCIe root port makes the device hot-pluggable.
        add(&["-device", "pcie-root-port,id=vsock-port,slot=1"]);
        let device = "vhost-user-vsock-pci,id=vsock-device,chardev=vsock,bus=vsock-port";
        add(&["-device", device]);
    }
    if let Some(network) = &config.network {
        let mut user = "user,id=network".to_owned();
        for port in &network.forwarded {
            user.push_str(&format!(",hostfwd=tcp:127.0.0.1:0-:{port}"));
        }
        add(&["-netdev", &user]);
        add(&["-device", "virtio-net-pci,netdev=network,romfile="]);
    }
    arguments
}
