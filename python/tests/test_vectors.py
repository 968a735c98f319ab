"""Runs the test vectors of docs/vectors."""

import unittest
import uuid

from hvsock import addresses, constants, messages, refusals

from .support import load

try:
    from hvsock._os.linux import endpoints
except ImportError:  # Windows
    endpoints = None

GUIDS = {"guid", "vm", "service", "local_vm", "local_service", "peer_vm", "peer_service"}
LONG = {"connection", "listener"}


def from_json(fields):
    """The fields of a message as this package has them."""
    convert = {**dict.fromkeys(GUIDS, uuid.UUID), **dict.fromkeys(LONG, int)}
    return {name: convert.get(name, lambda value: value)(value) for name, value in fields.items()}


class Addresses(unittest.TestCase):
    vectors = load("addresses")

    def rows(self, section):
        rows = self.vectors[section]
        self.assertTrue(rows)
        for row in rows:
            with self.subTest(section=section, row=row):
                yield row

    def assert_invalid(self, kind, parse, *arguments):
        with self.assertRaises(addresses.InvalidAddress) as caught:
            parse(*arguments)
        self.assertEqual(caught.exception.kind, kind)

    def test_guids(self):
        for row in self.rows("guids"):
            parsed = addresses.parse_guid(row["text"])
            self.assertEqual(str(parsed), row["guid"])
            self.assertEqual(parsed.bytes_le.hex(), row["bytes"])
        for row in self.rows("invalid_guids"):
            self.assert_invalid("guid", addresses.parse_guid, row["text"])

    def test_well_known(self):
        for row in self.rows("well_known"):
            self.assertEqual(str(addresses.WELL_KNOWN[row["word"]]), row["guid"])
            self.assertEqual(getattr(constants, row["constant"]), row["guid"])
        self.assertEqual(len(addresses.WELL_KNOWN), len(self.vectors["well_known"]))

    def assert_part(self, parsed, row):
        self.assertEqual(str(parsed), row["guid"] if isinstance(parsed, uuid.UUID) else row["name"])

    def test_partitions_and_services(self):
        for row in self.rows("partitions"):
            parsed = addresses.parse_partition(row["text"])
            self.assert_part(parsed, row)
            self.assertEqual(addresses.partition_text(parsed), row["display"])
        for row in self.rows("services"):
            parsed = addresses.parse_service(row["text"])
            self.assert_part(parsed, row)
            self.assertEqual(addresses.service_text(parsed), row["display"])
            if isinstance(parsed, uuid.UUID):
                self.assertEqual(addresses.port_of_service(parsed), row.get("port"))
        for row in self.rows("invalid_partitions"):
            self.assert_invalid(row["error"], addresses.parse_partition, row["text"])
        for row in self.rows("invalid_services"):
            self.assert_invalid(row["error"], addresses.parse_service, row["text"])

    def test_urls(self):
        for row in self.rows("urls"):
            parsed = addresses.parse_url(row["text"])
            self.assert_part(parsed.partition, row["partition"])
            self.assert_part(parsed.service, row["service"])
            self.assertEqual(parsed.url(), row["display"])
        for row in self.rows("invalid_urls"):
            self.assert_invalid(row["error"], addresses.parse_url, row["text"])

    def test_socket_addresses(self):
        for row in self.rows("sockaddr_hv"):
            parts = uuid.UUID(row["vm"]), uuid.UUID(row["service"]), row["flags"]
            self.assertEqual(addresses.sockaddr_hv(*parts).hex(), row["bytes"])
            self.assertEqual(addresses.parse_sockaddr_hv(bytes.fromhex(row["bytes"])), parts)
        for row in self.rows("sockaddr_vm"):
            parts = row["cid"], row["port"], row["flags"]
            self.assertEqual(addresses.sockaddr_vm(*parts).hex(), row["bytes"])
            self.assertEqual(addresses.parse_sockaddr_vm(bytes.fromhex(row["bytes"])), parts)
        for row in self.rows("invalid_sockaddr_hv"):
            self.assert_invalid(row["error"], addresses.parse_sockaddr_hv, bytes.fromhex(row["bytes"]))
        for row in self.rows("invalid_sockaddr_vm"):
            self.assert_invalid(row["error"], addresses.parse_sockaddr_vm, bytes.fromhex(row["bytes"]))

    def test_derived_ids(self):
        for row in self.rows("vsock_ports"):
            self.assertEqual(str(addresses.service_of_port(row["port"])), row["service"])
            self.assertEqual(addresses.port_of_service(uuid.UUID(row["service"])), row["port"])
        for row in self.rows("vsock_aliases"):
            self.assertEqual(addresses.vsock_alias(uuid.UUID(row["service"])), row["alias"])
        for row in self.rows("containers"):
            self.assertEqual(str(addresses.container_vm_id(row["runtime_id"])), row["vm_id"])
        for row in self.rows("nested_containers"):
            derived = addresses.nested_vm_id(uuid.UUID(row["vm"]), uuid.UUID(row["container"]))
            self.assertEqual(str(derived), row["vm_id"])


class Messages(unittest.TestCase):
    vectors = load("messages")
    codecs = {
        "to_broker": (messages.encode, messages.decode_to_broker),
        "from_broker": (messages.encode_from_broker, messages.decode),
    }

    def test_every_message_encodes_and_decodes(self):
        for direction, (encode, decode) in self.codecs.items():
            for row in self.vectors[direction]:
                with self.subTest(row=row):
                    fields = from_json(row["fields"])
                    self.assertEqual(encode(row["kind"], **fields).hex(), row["bytes"])
                    self.assertEqual(decode(bytes.fromhex(row["bytes"])), (row["kind"], fields))

    def test_long_text_is_truncated(self):
        for row in self.vectors["truncated"]:
            encode, _ = self.codecs[row["direction"]]
            self.assertEqual(encode(row["kind"], **from_json(row["fields"])).hex(), row["bytes"])

    def test_malformed_messages_are_refused(self):
        for row in self.vectors["malformed"]:
            with self.subTest(row=row):
                _, decode = self.codecs[row["direction"]]
                with self.assertRaises(messages.DecodeError) as caught:
                    decode(bytes.fromhex(row["bytes"]))
                self.assertEqual(caught.exception.kind, row["error"])
                self.assertEqual(caught.exception.field, row.get("field"))

    def test_every_kind_has_a_vector(self):
        for direction, table in (("to_broker", messages.TO_BROKER), ("from_broker", messages.FROM_BROKER)):
            found = {bytes.fromhex(row["bytes"])[1] for row in self.vectors[direction]}
            self.assertEqual(found, set(table))


class Refusals(unittest.TestCase):
    def test_every_refusal_has_its_numbers_and_its_text(self):
        rows = load("refusals")["refusals"]
        self.assertEqual([row["label"] for row in rows], list(refusals.LABELS.values()))
        for row in rows:
            refusal = refusals.Refusal.from_wire(row["code"], row["detail"])
            for name in ("code", "label", "errno", "wsa", "detail", "text"):
                self.assertEqual(getattr(refusal, name), row[name], row)

    def test_an_unknown_code_is_a_reset(self):
        for row in load("refusals")["unknown"]:
            refusal = refusals.Refusal.from_wire(row["code"], row["detail"])
            self.assertEqual((refusal.label, refusal.detail), ("reset", row["cause"]))

    def test_explanations(self):
        for row in load("explanations")["explanations"]:
            with self.subTest(row=row):
                explanation = refusals.parse_explanation(2, row["text"])
                self.assertEqual(explanation.refusal.detail, row["detail"])
                fix = explanation.fix and vars(explanation.fix)
                self.assertEqual(fix, row["fix"])
                steps = [{("pass" if k == "passed" else k): v for k, v in vars(s).items()} for s in explanation.steps]
                self.assertEqual(steps, row["steps"])


@unittest.skipIf(endpoints is None, "Windows has no endpoints")
class Endpoints(unittest.TestCase):
    def test_the_environment_selects_the_paths(self):
        for row in load("endpoints")["endpoints"]:
            with self.subTest(row=row):
                endpoint = endpoints.Endpoint.from_env(row["env"], owner=lambda path: None)
                self.assertEqual(endpoint.paths, row["paths"])
                self.assertEqual(endpoint.vsock, row["vsock"])

    def test_the_runtime_folder_of_another_user_is_ignored(self):
        env = {"XDG_RUNTIME_DIR": "/run/user/1000"}
        for foreign in ("/run/user/1000", "/run/user/1000/hvsock"):
            endpoint = endpoints.Endpoint.from_env(env, owner=lambda path: 4242 if path == foreign else None)
            self.assertEqual(endpoint.paths, ["/run/hvsock/endpoint"])
