"""The brokers that librdkafka simulates for its tests, in their own process.

The program prints their addresses, and executes the commands on its standard input until that ends:
``kill``, ``start``, ``delay MILLISECONDS``, ``fill REQUESTS`` and ``empty``. It answers each with
``done``.
"""

import ctypes
import sys
from pathlib import Path

import confluent_kafka

BROKERS = (1, 2)
PRODUCE = 0  # the number of this kind of request in Kafka's protocol
STORAGE_ERROR = 56  # the error of a broker whose disk is full or broken

POINTER, TEXT, INT = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
SIZE, BROKER, KIND = ctypes.c_size_t, ctypes.c_int32, ctypes.c_int16
# Functions with the types of their results and arguments: see rdkafka.h and rdkafka_mock.h.
FUNCTIONS = {
    "conf_new": (POINTER,),
    "conf_set": (INT, POINTER, TEXT, TEXT, TEXT, SIZE),
    "new": (POINTER, INT, POINTER, TEXT, SIZE),
    "mock_cluster_new": (POINTER, POINTER, INT),
    "mock_cluster_bootstraps": (TEXT, POINTER),
    "mock_broker_set_down": (INT, POINTER, BROKER),
    "mock_broker_set_up": (INT, POINTER, BROKER),
    "mock_broker_set_rtt": (INT, POINTER, BROKER, INT),
    "mock_push_request_errors_array": (None, POINTER, KIND, SIZE, ctypes.POINTER(INT)),
    "mock_clear_request_errors": (None, POINTER, KIND),
}


def loaded():
    """Load the library that the wheel of confluent-kafka contains."""
    folder = Path(confluent_kafka.__file__).parents[1] / "confluent_kafka.libs"
    (path,) = folder.glob("librdkafka-*.so*")
    library = ctypes.CDLL(str(path))
    for name, (result, *arguments) in FUNCTIONS.items():
        function = getattr(library, f"rd_kafka_{name}")
        function.restype, function.argtypes = result, arguments
    return library


def main():
    kafka = loaded()
    settings = kafka.rd_kafka_conf_new()
    kafka.rd_kafka_conf_set(settings, b"log_level", b"0", None, 0)
    client = kafka.rd_kafka_new(0, settings, None, 0)
    cluster = kafka.rd_kafka_mock_cluster_new(client, len(BROKERS))
    print(kafka.rd_kafka_mock_cluster_bootstraps(cluster).decode(), flush=True)
    for line in sys.stdin:
        match line.split():
            case ["kill"]:
                for broker in BROKERS:
                    kafka.rd_kafka_mock_broker_set_down(cluster, broker)
            case ["start"]:
                for broker in BROKERS:
                    kafka.rd_kafka_mock_broker_set_up(cluster, broker)
            case ["delay", milliseconds]:
                for broker in BROKERS:
                    kafka.rd_kafka_mock_broker_set_rtt(cluster, broker, int(milliseconds))
            case ["fill", requests]:
                errors = (INT * int(requests))(*[STORAGE_ERROR] * int(requests))
                kafka.rd_kafka_mock_push_request_errors_array(cluster, PRODUCE, len(errors), errors)
            case ["empty"]:
                kafka.rd_kafka_mock_clear_request_errors(cluster, PRODUCE)
        print("done", flush=True)


main()
