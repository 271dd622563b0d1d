//! A real AWS client, boto3, works with the local endpoint, and its signatures are checked.

use std::path::Path;
use std::process::Command;

use crate::support::{Endpoint, missing};

#[test]
fn boto3_manages_streams_and_is_refused_with_the_services_errors() {
    let python = std::env::var("KVS_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let has_boto3 = Command::new(&python).args(["-c", "import boto3"]).output();
    if !has_boto3.is_ok_and(|import| import.status.success()) {
        let why = "KVS_TEST_PYTHON names a Python with boto3 that plays the AWS client";
        return missing("boto3", why);
    }
    let endpoint = Endpoint::start([""; 0]);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/aws_client.py");
    let client = Command::new(&python)
        .arg(script)
        .arg(endpoint.url())
        // Nothing of this machine's configuration counts, and no proxy stands between.
        .env_remove("AWS_PROFILE")
        .env("NO_PROXY", "127.0.0.1")
        .env("AWS_CONFIG_FILE", "/dev/null")
        .env("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .output()
        .expect("Python runs");
    let said = String::from_utf8_lossy(&client.stdout);
    let complaint = String::from_utf8_lossy(&client.stderr);
    assert!(client.status.success(), "{said}{complaint}");
    assert!(said.ends_with("all checks passed\n"), "{said}");
}
