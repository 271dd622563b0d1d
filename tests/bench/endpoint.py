"""The local endpoint as a process of its own, for scripts that run the producer against it. Python's library and openssl."""

import json
import os
import subprocess
import sys
import tempfile
import threading

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

# The endpoint's certificate is for its address, and signed by a CA that nobody knows.
CERTIFICATES = """
[req]
distinguished_name = name
prompt = no
[name]
CN = kvs local endpoint
[ca]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign
[leaf]
subjectAltName = IP:127.0.0.1
"""


def build(profile="dev"):
    """Builds the producer with the local endpoint for this machine, and returns its path."""
    command = ["cargo", "build", "--quiet", "--locked", "--features", "local", "--profile", profile]
    subprocess.run([*command, "--bin", "kvsProducerApp"], cwd=ROOT, check=True)
    target = os.environ.get("CARGO_TARGET_DIR") or os.path.join(ROOT, "target")
    return os.path.join(target, "debug" if profile == "dev" else profile, "kvsProducerApp")


def producer(options):
    """The build of the producer that `--program` names, or that cross/build has made for `--target`."""
    path = options.program or os.path.join(ROOT, "target", "cross", options.target, "kvsProducerApp")
    if not os.path.exists(path):
        raise SystemExit(f"{path} is missing: cross/build {options.target}")
    return path


class Endpoint:
    """Runs as long as the `with` block. `environment` leads a producer to it, `ca` is the CA's file when it
    speaks TLS, `scenario` is how it misbehaves (src/local/scenario.rs has the format)."""

    def __init__(self, program, tls=False, scenario=None):
        self.program = program
        self.tls = tls
        self.scenario = scenario
        self.ca = None

    def __enter__(self):
        self.directory = tempfile.TemporaryDirectory(prefix="kvs-endpoint-")
        command = [self.program, "local-endpoint", "--listen", "127.0.0.1:0"]
        if self.tls:
            self.ca = self.file("ca.pem")
            self.make_certificates()
            command += ["--tls-cert", self.file("leaf.pem"), "--tls-key", self.file("leaf.key")]
        if self.scenario:
            with open(self.file("scenario.json"), "w", encoding="ascii") as file:
                json.dump(self.scenario, file)
            command += ["--scenario", self.file("scenario.json")]
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        lines = [self.process.stdout.readline().strip().split("=", 1) for _ in range(4)]
        if not all(len(line) == 2 for line in lines):
            raise SystemExit(f"the local endpoint does not start: {self.process.communicate()[1]}")
        self.environment = dict(lines)
        # A full pipe would stop it.
        self.log = []
        threading.Thread(target=lambda: self.log.extend(self.process.stderr), daemon=True).start()
        return self

    def __exit__(self, *_):
        if self.process.poll() is not None:
            print(f"the local endpoint has ended with {self.process.returncode}: {''.join(self.log)}", file=sys.stderr)
        self.process.terminate()
        self.process.wait()
        self.directory.cleanup()

    def file(self, name):
        return os.path.join(self.directory.name, name)

    def make_certificates(self):
        with open(self.file("openssl.cnf"), "w", encoding="ascii") as file:
            file.write(CERTIFICATES)
        key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        self.openssl("req", "-x509", "-extensions", "ca", "-days", "7", *key, "-keyout", "ca.key", "-out", "ca.pem",
                     "-config", "openssl.cnf")
        self.openssl("req", *key, "-keyout", "leaf.key", "-out", "leaf.csr", "-config", "openssl.cnf")
        self.openssl("x509", "-req", "-in", "leaf.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-set_serial", "1",
                     "-days", "7", "-extfile", "openssl.cnf", "-extensions", "leaf", "-out", "leaf.pem")

    def openssl(self, *words):
        done = subprocess.run(["openssl", *words], cwd=self.directory.name, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SystemExit(f"openssl {' '.join(words)}\n{done.stderr}")
