//! Help texts with examples, in the words of PowerShell.
//!
//! Windows' own tar is bsdtar, whose default is a tape and not its output, hence `-f -`. That
//! PowerShell takes what passes a pipe for text, and from 7.4 on no longer does, is said in
//! learn.microsoft.com/powershell/scripting/learn/experimental-features
//! (`PSNativeCommandPreserveBytePipe`).

/// After all else: where to start.
pub const START: &str = "\
Start here, in PowerShell as an administrator:
  hvsock service register 'HV Socket Demo'       allow a service
  hvsock vm list                                 see the virtual machines
  hvsock listen 'HV Socket Demo' --from web      offer it to the virtual machine web
  hvsock connect web 'HV Socket Demo'            use what web offers
  hvsock why web 'HV Socket Demo'                be told why that does not work

Windows itself is the broker: services are kept in its registry, and virtual machines are
Hyper-V's. The commands that run a broker or ask one (demo, broker, container, connections,
events, bench) are those of Linux.

Environment:
  NO_COLOR         no colours

Exit status: 0 done, 1 refused or failed, 2 wrong usage.";

/// Of `hvsock listen`.
pub const LISTEN: &str = "\
Examples:
  hvsock listen 'HV Socket Demo'                             talk to the first that connects
  hvsock listen clock --keep -- cmd /c time /t               the time for each that connects
  hvsock listen backup --from children -- tar -cf - C:\\Data
  hvsock listen 2761 --from web > received

The command has the connection as its standard input and output, and in its environment
HVSOCK_PEER_PARTITION, HVSOCK_PEER_VM_ID, HVSOCK_SERVICE and HVSOCK_CONNECTION.

In PowerShell before 7.4 a pipe or > changes bytes that are no text; cmd's do not.";

/// Of `hvsock connect`.
pub const CONNECT: &str = "\
Examples:
  echo hi | hvsock connect loopback 'HV Socket Demo'
  hvsock connect parent 2761                          from a virtual machine
  hvsock connect 'Windows 11' 2761                    a name as Hyper-V has it
  hvsock connect hvsock://web/HV%20Socket%20Demo
  hvsock connect web backup -- tar -xf -              tar has the connection as its stdin and stdout

The end of the input ends the sending half only; the command ends with the other end, with exit
status 0. If the connection is cut it says why, with exit status 1.

In PowerShell before 7.4 a pipe or > changes bytes that are no text; cmd's do not.";

/// Of `hvsock completions`.
pub const COMPLETIONS: &str = "\
Examples:
  hvsock completions powershell | Out-String | Invoke-Expression
  hvsock completions powershell >> $PROFILE";

/// Of `hvsock man`.
pub const MAN: &str = "\
Examples:
  hvsock man --output man";

/// Of `hvsock service register`.
pub const REGISTER: &str = "\
Examples:
  $id = hvsock service register 'HV Socket Demo'
  hvsock service register 'HV Socket Demo' --clip    the GUID is in the clipboard as well
  hvsock service register backup --port 2761         also reachable as vsock port 2761
  hvsock service register trial --lease              until Ctrl-C

It takes the rights of an administrator.";

/// Of `hvsock service`.
pub const SERVICE: &str = "\
Examples:
  hvsock service register 'HV Socket Demo'
  hvsock service disable backup --vm 'Windows 11'
  hvsock service export --reg --output services.reg

Services are kept where Windows looks for them, under
HKLM\\SOFTWARE\\Microsoft\\Windows NT\\CurrentVersion\\Virtualization\\GuestCommunicationServices,
which takes the rights of an administrator to change. One that is disabled for all is kept
elsewhere meanwhile, since Windows has no word for that; for one virtual machine it is a policy
of Hyper-V's.";

/// Of `hvsock why`.
pub const WHY: &str = "\
Examples:
  hvsock why parent 'HV Socket Demo'            as this process
  hvsock why web backup --listen                whether it could listen for web

Exit status: 0 nothing stands against it, 1 it would be refused.";
