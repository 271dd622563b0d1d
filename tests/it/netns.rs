//! Over a link of the kernel's own, between two network namespaces: what only real packets show. Needs root and `ip`; the
//! slow and lossy link needs the kernel's netem as well. Where something is missing the test says so and passes; with
//! `KVS_TEST_TOOLS=required` a missing `ip` or root makes it fail.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use kvs_producer_app::clock::Clock;
use kvs_producer_app::local::Credential;
use serde_json::Value;
use tokio::time::sleep;

use crate::child::Producer;

/// Addresses in the namespaces only (RFC 5737).
const CAMERA: &str = "192.0.2.1";
const SERVICE: &str = "192.0.2.2";

/// Two namespaces with a cable between them, and an endpoint in one.
struct Cable {
    camera: String,
    service: String,
    endpoint: Option<Child>,
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
            endpoint: None,
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
        let mut endpoint = Command::new("ip")
            .args(["netns", "exec", &self.service])
            .arg(env!("CARGO_BIN_EXE_kvsProducerApp"))
            .args(["local-endpoint", "--listen", &listen, "--allow-remote"])
            .env("KVS_QUIET", "2")
            .stdout(Stdio::piped())
            .spawn()
            .expect("ip has run before");
        let output = endpoint.stdout.take().expect("it is a pipe");
        self.endpoint = Some(endpoint);
        let line = BufReader::new(output)
            .lines()
            .next()
            .expect("a line")
            .expect("text");
        line.split_once('=').expect("a variable").1.to_owned()
    }

    fn stream(&mut self, arguments: &[&str]) -> Producer {
        let url = self.serve();
        let front = ["ip", "netns", "exec", &self.camera];
        Producer::start_in(&front, &url, &Credential::default(), arguments)
    }

    fn in_service(&self, line: &str) -> Result<(), String> {
        run(&format!("ip netns exec {} {line}", self.service))
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        if let Some(endpoint) = &mut self.endpoint {
            // It may have ended.
            let _ = endpoint.kill();
            let _ = endpoint.wait();
        }
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
