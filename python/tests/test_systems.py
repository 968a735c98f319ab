"""The back ends of Windows and of the kernel's AF_VSOCK, with fake sockets."""

import errno
import sys
import types
import unittest
import uuid
from unittest import mock

import hvsock
from hvsock import addresses
from hvsock._options import Options
from hvsock._os.windows import backend as windows

try:
    from hvsock._os.linux import vsock
    from hvsock._os.linux.endpoints import Endpoint
except ImportError:  # Windows
    vsock = None

DEMO = "999e53d4-3d5c-4c3e-8779-bed06ec056e1"


class FakeSocket:
    def __init__(self, *arguments):
        self.calls = [("socket", *arguments)]
        self.failure = FakeModule.failure

    def record(self, name, *arguments):
        self.calls.append((name, *arguments))
        if self.failure and self.failure[0] == name:
            raise self.failure[1]

    def __getattr__(self, name):
        return lambda *arguments: self.record(name, *arguments)

    def accept(self):
        return FakeSocket(), ("{%s}" % hvsock.HV_GUID_LOOPBACK.upper(), hvsock.HV_GUID_ZERO)

    def getpeername(self):
        return (hvsock.HV_GUID_PARENT, DEMO.upper())


class FakeModule(types.SimpleNamespace):
    failure = None
    made = None

    def socket(self, *arguments):
        FakeModule.made = FakeSocket(*arguments)
        return FakeModule.made


def module(**failure):
    FakeModule.failure = next(iter(failure.items()), None)
    return FakeModule(
        AF_HYPERV=34, HV_PROTOCOL_RAW=1, HVSOCKET_CONNECT_TIMEOUT=1, HVSOCKET_CONNECTED_SUSPEND=4, AF_VSOCK=40
    )


class FakeRegistry:
    HKEY_LOCAL_MACHINE = "HKLM"
    services = {DEMO: "HV Socket Demo", "00000ac9-facb-11e6-bd58-64006a7986d3": None}

    class Key(list):
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    def OpenKey(self, parent, name):
        return self.Key([name])

    def QueryInfoKey(self, key):
        return (len(self.services), 0, 0)

    def EnumKey(self, key, index):
        return list(self.services)[index]

    def QueryValueEx(self, key, name):
        value = self.services[key[0]]
        if value is None:
            raise FileNotFoundError(2, name)
        return value, 1


class Windows(unittest.TestCase):
    def use(self, fake, registry=None):
        for name, value in (("_module", fake), ("_registry", registry or FakeRegistry())):
            patch = mock.patch.object(windows, name, lambda value=value: value)
            patch.start()
            self.addCleanup(patch.stop)

    def test_a_connect_uses_the_systems_sockets_with_its_options(self):
        self.use(module())
        address = addresses.parse_address(("parent", "hv socket demo"))
        sock = windows.connect(address, 2.5, Options(connected_suspend=True))
        self.assertEqual(
            FakeModule.made.calls,
            [
                ("socket", 34, 1, 1),
                ("settimeout", 2.5),
                ("setsockopt", 1, 1, 2500),
                ("setsockopt", 1, 4, 1),
                ("connect", (hvsock.HV_GUID_PARENT, DEMO)),
            ],
        )
        self.assertEqual(sock.getpeername(), (hvsock.HV_GUID_PARENT, DEMO))
        self.assertEqual(sock.transport, "hyperv")

    def test_a_server_binds_listens_and_accepts(self):
        self.use(module())
        listener = windows.create_server(addresses.parse_address(("any", 2761)), 7, Options())
        service = str(addresses.service_of_port(2761))
        calls = FakeModule.made.calls
        self.assertEqual(calls[2:], [("bind", (hvsock.HV_GUID_WILDCARD, service)), ("listen", 7)])
        accepted, peer = listener.accept()
        self.assertEqual(peer, (hvsock.HV_GUID_LOOPBACK, hvsock.HV_GUID_ZERO))
        self.assertEqual(accepted.peer.partition, hvsock.HV_GUID_LOOPBACK)

    def test_an_error_of_winsock_is_a_refusal(self):
        for number, label in ((10061, "no_listener"), (10060, "timed_out"), (10049, "address_not_available")):
            error = OSError(number, "no")
            self.use(module(connect=error))
            with self.assertRaises(hvsock.Refused) as caught:
                windows.connect(addresses.parse_address(("parent", 1)), None, Options())
            self.assertEqual(caught.exception.refusal.label, label)
            self.assertEqual(FakeModule.made.calls[-1], ("close",))

    def test_an_unknown_name_and_an_old_python_are_explained(self):
        self.use(module())
        with self.assertRaises(hvsock.Refused) as caught:
            windows.connect(addresses.parse_address(("parent", "no such")), None, Options())
        self.assertEqual(caught.exception.refusal.label, "unregistered")
        with self.assertRaises(hvsock.Refused) as caught:
            windows.connect(addresses.parse_address(("web", 1)), None, Options())
        self.assertIn("use the VM's id", str(caught.exception))
        self.use(types.SimpleNamespace())
        with self.assertRaises(OSError) as caught:
            windows.connect(addresses.parse_address(("parent", 1)), None, Options())
        self.assertIn("Python 3.12", str(caught.exception))


@unittest.skipIf(vsock is None, "Windows has no AF_VSOCK")
class Vsock(unittest.TestCase):
    def test_a_virtual_machine_without_a_broker_uses_it(self):
        without = Endpoint(["/nowhere/endpoint"], "without_broker")
        for cid, takes_over in ((None, False), (0, False), (2, False), (3, True), (42, True), (0xFFFFFFFF, False)):
            self.assertEqual(vsock.takes_over(without, lambda cid=cid: cid), takes_over, cid)
        self.assertTrue(vsock.takes_over(Endpoint([], "always"), lambda: None))
        self.assertFalse(vsock.takes_over(Endpoint(["/e"], "never"), lambda: 42))

    def test_parent_and_loopback_are_context_ids_and_services_are_ports(self):
        for address, want in (
            (("parent", 2761), (2, 2761)),
            (("loopback", 7), (1, 7)),
            (("parent", DEMO), (2, 1461511273)),
        ):
            sock = vsock.connect(addresses.parse_address(address), 5, module())
            self.assertEqual(FakeModule.made.calls, [("socket", 40, 1, 0), ("settimeout", 5), ("connect", want)])
            self.assertEqual(sock.transport, "vsock")
        vsock.listen(addresses.parse_address(("any", 9)), 3, module())
        self.assertEqual(FakeModule.made.calls[2:], [("bind", (0xFFFFFFFF, 9)), ("listen", 3)])

    def test_names_and_other_partitions_are_refused_with_the_reason(self):
        with self.assertRaises(ValueError) as caught:
            vsock.connect(addresses.parse_address(("parent", "Demo")), None, module())
        self.assertIn("without a broker", str(caught.exception))
        with self.assertRaises(hvsock.Refused) as caught:
            vsock.connect(addresses.parse_address((uuid.uuid4(), 1)), None, module())
        self.assertEqual(caught.exception.refusal.label, "not_supported")

    def test_the_kernels_error_numbers_are_refusals(self):
        for number, label in (
            (errno.ECONNRESET, "no_listener"),
            (errno.ETIMEDOUT, "timed_out"),
            (errno.ENODEV, "not_reachable"),
        ):
            with self.assertRaises(hvsock.Refused) as caught:
                fake = module(connect=OSError(number, "no"))
                vsock.connect(addresses.parse_address(("parent", 1)), None, fake)
            self.assertEqual(caught.exception.refusal.label, label)


class Choice(unittest.TestCase):
    def test_the_environment_selects_the_implementation(self):
        from hvsock import _accelerated

        fake = types.ModuleType("hvsock_accelerator")
        with mock.patch.dict(sys.modules, {"hvsock_accelerator": fake}):
            self.assertIs(_accelerated._choose(""), fake)
            self.assertIs(_accelerated._choose("accelerator"), fake)
            self.assertIsNone(_accelerated._choose("pure"))
        with mock.patch.dict(sys.modules, {"hvsock_accelerator": None}):
            self.assertIsNone(_accelerated._choose(""))
            with self.assertRaises(ImportError):
                _accelerated._choose("accelerator")
        with self.assertRaises(ValueError):
            _accelerated._choose("fast")
