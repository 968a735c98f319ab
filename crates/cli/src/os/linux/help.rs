//! Help texts with examples, in the words of this system's shells.

/// After all else: where to start.
pub const START: &str = "\
Start here:
  hvsock demo                                    see all of it in a few seconds
  hvsock broker                                  run the broker that the rest talks to
  hvsock service register 'HV Socket Demo'       allow a service
  hvsock listen 'HV Socket Demo' --keep -- cat   offer it
  hvsock connect loopback 'HV Socket Demo'       use it

Environment:
  HVSOCK_DIR       the broker's folder, as --dir
  HVSOCK_ENDPOINT  the endpoint socket to reach services by; `vsock` for the kernel's AF_VSOCK,
                   which a virtual machine without a broker uses by itself
  NO_COLOR         no colours

Exit status: 0 done, 1 refused or failed, 2 wrong usage.";

/// Of `hvsock listen`.
pub const LISTEN: &str = "\
Examples:
  hvsock listen 'HV Socket Demo'                      talk to the first that connects
  hvsock listen 'HV Socket Demo' --keep -- cat        an echo service
  hvsock listen backup --from children -- tar -c /etc
  hvsock listen 2761 --from web > received

The command has the connection as its standard input and output, and in its environment
HVSOCK_PEER_PARTITION, HVSOCK_PEER_VM_ID, HVSOCK_PEER_PID, HVSOCK_PEER_UID, HVSOCK_SERVICE and
HVSOCK_CONNECTION.";

/// Of `hvsock connect`.
pub const CONNECT: &str = "\
Examples:
  echo hi | hvsock connect loopback 'HV Socket Demo'
  hvsock connect parent 2761                          from a container or virtual machine
  hvsock connect hvsock://web/HV%20Socket%20Demo
  hvsock connect web backup -- tar -x                 tar has the connection as its stdin and stdout

The end of the input ends the sending half only; the command ends with the other end, with exit
status 0. If the connection is cut it says why, with exit status 1.";

/// Of `hvsock completions`.
pub const COMPLETIONS: &str = "\
Examples:
  hvsock completions bash > /etc/bash_completion.d/hvsock
  hvsock completions fish > ~/.config/fish/completions/hvsock.fish";

/// Of `hvsock man`.
pub const MAN: &str = "\
Examples:
  hvsock man | man -l -
  hvsock man --output /usr/share/man/man1";

/// Of `hvsock service register`.
pub const REGISTER: &str = "\
Examples:
  id=$(hvsock service register 'HV Socket Demo')
  hvsock service register backup --port 2761         also reachable as vsock port 2761
  hvsock service register ci-cache --partition @ci   only for containers of the group ci
  hvsock service register trial --lease              until Ctrl-C";

/// Of `hvsock service`.
pub const SERVICE: &str = "\
Examples:
  hvsock service register 'HV Socket Demo'
  hvsock service register backup --port 2761 --connect-user alice --partition web
  hvsock service disable backup --vm web
  hvsock service export --reg > services.reg";

/// Of `hvsock why`.
pub const WHY: &str = "\
Examples:
  hvsock why parent 'HV Socket Demo'            as this process
  hvsock why web backup --listen                whether it could listen for web
  hvsock why parent backup --from web           as the container web, asked from outside

Exit status: 0 it would succeed, 1 it would be refused.";

/// Of `hvsock exec`.
pub const EXEC: &str = "\
Examples:
  hvsock exec web -- uname -a
  hvsock exec web -it -- top
  hvsock exec web -u postgres -w /srv -e LANG=C -- pg_dump shop > shop.sql
  hvsock exec web -i -- tar -x -C /srv < site.tar

Standard output and standard error stay apart, except with -t. SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1
and SIGUSR2 are passed on; the third that should have ended it leaves it, and so does ~. at the beginning
of a line with -t. Whatever leaves the command ends it in the guest, with all that it started there.

Exit status: the command's, or 128 and the number of the signal that ended it; 124 out of time,
125 it was not run or its end is not known, 126 not executable, 127 not found.";

/// Of `hvsock shell`.
pub const SHELL: &str = "\
Examples:
  hvsock shell web
  hvsock shell web -u alice
  hvsock shell web < script

It is the user's login shell. Type ~. at the beginning of a line to leave one that does not answer.

Exit status: the shell's; see `hvsock exec --help`.";
