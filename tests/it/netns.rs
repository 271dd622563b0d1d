//! Over a link of the kernel's own, between two network namespaces: what only real packets show. Needs root and `ip`; the
//! slow and lossy link needs the kernel's netem as well. Where something is missing the test says so and passes; with
//! `KVS_TEST_TOOLS=required` a missing `ip` or root makes it fail.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use kvs_producer_app::clock::Clock;
use kvs_producer_app::kvs::session::Settings;
use kvs_producer_app::local::Credential;
use serde_json::Value;
use tokio::time::{sleep, timeout};

use crate::child::Producer;

/// Addresses in the namespaces only (RFC 5737).
const CAMERA: &str = "192.0.2.1";
const SERVICE: &str = "192.0.2.2";

/// What the name server knows.
const NAME: &str = "kvs.example";

/// Answers every question for an IPv4 address with its first argument, and any other with nothing.
const NAME_SERVER: &str = r"
import ipaddress, socket, sys
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind((sys.argv[1], 53))
print('ready', flush=True)
while True:
    query, client = server.recvfrom(512)
    end = query.index(0, 12) + 5
    found = query[end - 4:end - 2] == b'\0\1'
    answer = query[:2] + b'\x81\x80\0\1' + bytes([0, found]) + b'\0\0\0\0' + query[12:end]
    if found:
        answer += b'\xc0\x0c\0\1\0\1\0\0\0\0\0\4' + ipaddress.ip_address(sys.argv[1]).packed
    try:
        server.sendto(answer, client)
    except OSError:
        pass  # there is no route back
";

/// Two namespaces with a cable between them, and an endpoint in one.
struct Cable {
    camera: String,
    service: String,
    servers: Vec<Child>,
}

fn run(line: &str) -> Result<(), String> {
    let mut words = line.split_whitespace();
    let output = Command::new(words.next().expect("a program"))
        .args(words)
        .output()
        .map_err(|error| format!("{line}: {error}"))?;
    if output.status.success() {
        Ok(())
    } else {
        let said = String::from_utf8_lossy(&output.stderr);
        Err(format!("{line}: {}", said.trim()))
    }
}

impl Cable {
    /// `None` where this machine cannot, for a reason that was printed.
    fn lay(name: &str) -> Option<Self> {
        let id = std::process::id();
        let cable = Self {
            camera: format!("kvs{name}c{id}"),
            service: format!("kvs{name}s{id}"),
            servers: Vec::new(),
        };
        let Self {
            camera, service, ..
        } = &cable;
        let laid = [
            format!("ip netns add {camera}"),
            format!("ip netns add {service}"),
            format!("ip -n {camera} link add cable type veth peer name cable netns {service}"),
            format!("ip -n {camera} address add {CAMERA}/24 dev cable"),
            format!("ip -n {service} address add {SERVICE}/24 dev cable"),
            format!("ip -n {camera} link set cable up"),
            format!("ip -n {service} link set cable up"),
        ]
        .iter()
        .try_for_each(|line| run(line));
        match laid {
            Ok(()) => Some(cable),
            Err(reason) => {
                let required = std::env::var("KVS_TEST_TOOLS").is_ok_and(|word| word == "required");
                assert!(!required, "{reason}");
                eprintln!("skipped: no network namespaces here: {reason}");
                None
            }
        }
    }

    /// Starts the endpoint in its namespace, and gives its address.
    fn serve(&mut self) -> String {
        let listen = format!("{SERVICE}:4566");
        let program = env!("CARGO_BIN_EXE_kvsProducerApp");
        let line = self.start(&[
            program,
            "local-endpoint",
            "--listen",
            &listen,
            "--allow-remote",
        ]);
        line.split_once('=').expect("a variable").1.to_owned()
    }

    /// Starts a server in the service's namespace, and gives its first line.
    fn start(&mut self, line: &[&str]) -> String {
        let mut server = Command::new("ip")
            .args(["netns", "exec", &self.service])
            .args(line)
            .env("KVS_QUIET", "2")
            .stdout(Stdio::piped())
            .spawn()
            .expect("ip has run before");
        let output = server.stdout.take().expect("it is a pipe");
        self.servers.push(server);
        let mut lines = BufReader::new(output).lines();
        lines.next().expect("a line").expect("text")
    }

    /// Has names looked up in the service's namespace. `ip netns exec` puts the file in the place of the machine's own.
    fn serve_names(&mut self) {
        let directory = self.resolver();
        fs::create_dir_all(&directory).expect("root may");
        let text = format!("nameserver {SERVICE}\n");
        fs::write(directory.join("resolv.conf"), text).expect("root may");
        let python = std::env::var("KVS_TEST_PYTHON").unwrap_or_else(|_| "python3".into());
        assert_eq!(self.start(&[&python, "-c", NAME_SERVER, SERVICE]), "ready");
    }

    fn resolver(&self) -> PathBuf {
        Path::new("/etc/netns").join(&self.camera)
    }

    fn stream(&mut self, arguments: &[&str]) -> Producer {
        let url = self.serve();
        self.stream_to(&url, arguments)
    }

    fn stream_to(&self, url: &str, arguments: &[&str]) -> Producer {
        let front = ["ip", "netns", "exec", &self.camera];
        Producer::start_in(&front, url, &Credential::default(), arguments)
    }

    fn in_service(&self, line: &str) -> Result<(), String> {
        run(&format!("ip netns exec {} {line}", self.service))
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        for server in &mut self.servers {
            // It may have ended.
            let _ = server.kill();
            let _ = server.wait();
        }
        // There may be none.
        let _ = fs::remove_dir_all(self.resolver());
        for namespace in [&self.camera, &self.service] {
            // It may never have been there.
            let _ = run(&format!("ip netns delete {namespace}"));
        }
    }
}

fn frames(report: &Value, of: &str) -> u64 {
    report[of]["frames"].as_u64().expect("a number")
}

/// What the log has by now, once it has `text`.
async fn logged(producer: &Producer, text: &str) {
    while !producer.stderr().contains(text) {
        sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn packets_that_vanish_without_a_word_are_noticed_within_5_s() {
    let Some(mut cable) = Cable::lay("v") else {
        return;
    };
    let producer = cable.stream(&["-vv"]);
    logged(&producer, "fragment persisted").await;
    // Everything still gets there, and nothing comes back: not even the kernel's own acknowledgements.
    cable
        .in_service(&format!("ip route add blackhole {CAMERA}/32"))
        .expect("a route");
    let since = Clock.now();
    logged(&producer, "will be sent again").await;
    let left_after = since.elapsed();
    // The kernel notices by what it sends again in vain. By the missing BUFFERING of the next fragment it would be 7 s.
    assert!(
        left_after < Duration::from_millis(6_500),
        "{left_after:?}\n{}",
        producer.stderr()
    );
    cable
        .in_service(&format!("ip route delete blackhole {CAMERA}/32"))
        .expect("it was there");
    sleep(Duration::from_secs(1)).await;
    producer.terminate();
    let ended = producer.end().await;
    assert!(ended.status.success(), "{}", ended.stderr);
    assert_eq!(
        frames(&ended.report, "captured"),
        frames(&ended.report, "persisted")
    );
}

#[tokio::test]
async fn an_outage_in_which_names_are_looked_up_in_vain_ends_with_it() {
    let Some(mut cable) = Cable::lay("n") else {
        return;
    };
    cable.serve_names();
    let url = cable.serve().replace(SERVICE, NAME);
    let producer = cable.stream_to(&url, &["-vv"]);
    logged(&producer, "fragment persisted").await;
    cable
        .in_service(&format!("ip route add blackhole {CAMERA}/32"))
        .expect("a route");
    // The connection is left after 5 s; then every look-up hangs, for longer than a connection may take.
    sleep(Duration::from_secs(16)).await;
    let said = producer.stderr();
    assert!(said.contains(NAME), "{said}");
    cable
        .in_service(&format!("ip route delete blackhole {CAMERA}/32"))
        .expect("it was there");
    let before = said.matches("fragment persisted").count();
    let recovered = async {
        while producer.stderr().matches("fragment persisted").count() == before {
            sleep(Duration::from_millis(10)).await;
        }
    };
    let longest = Settings::default().longest_wait + Duration::from_secs(5);
    timeout(longest, recovered).await.expect("it goes on");
    producer.terminate();
    let ended = producer.end().await;
    assert!(ended.status.success(), "{}", ended.stderr);
    assert_eq!(
        frames(&ended.report, "captured"),
        frames(&ended.report, "persisted")
    );
}

#[tokio::test]
async fn a_slow_and_lossy_link_with_a_long_round_trip_is_not_left() {
    let Some(mut cable) = Cable::lay("l") else {
        return;
    };
    let Cable {
        camera, service, ..
    } = &cable;
    let shaped = [camera, service].iter().try_for_each(|namespace| {
        let netem = "netem delay 100ms loss 2% rate 500kbit limit 200";
        run(&format!(
            "tc -n {namespace} qdisc add dev cable root {netem}"
        ))
    });
    if let Err(reason) = shaped {
        eprintln!("skipped: no netem here: {reason}");
        return;
    }
    let producer = cable.stream(&[]);
    sleep(Duration::from_secs(12)).await;
    producer.terminate();
    let ended = producer.end().await;
    assert!(ended.status.success(), "{}", ended.stderr);
    assert_eq!(ended.report["connections"], 1, "{}", ended.stderr);
    assert_eq!(
        frames(&ended.report, "captured"),
        frames(&ended.report, "persisted")
    );
}
