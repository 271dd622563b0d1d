//! Man pages and shell completions, from the same definitions as the command line (feature `pages`).

use std::fs::{self, File};
use std::io;
use std::path::Path;

use clap::CommandFactory as _;
use clap_complete::{Shell, generate_to};

use crate::cli::Args;

/// Name of the program.
const PROGRAM: &str = "kvsProducerApp";

/// Writes them to `dir`, which is made where it is missing.
///
/// # Errors
/// The operating system's.
pub fn write(dir: &Path) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    let mut command = Args::command();
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        generate_to(shell, &mut command, PROGRAM, dir)?;
    }
    command.build();
    let page = |name: &str, command: &clap::Command| {
        let mut file = File::create(dir.join(format!("{name}.1")))?;
        clap_mangen::Man::new(command.clone())
            .title(name)
            .render(&mut file)
    };
    page(PROGRAM, &command)?;
    for part in command.get_subcommands().filter(|part| !part.is_hide_set()) {
        page(&format!("{PROGRAM}-{}", part.get_name()), part)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page_and_every_shell_its_completions() {
        let dir = tempfile::tempdir().expect("a directory");
        write(dir.path()).expect("written");
        let read = |name: &str| fs::read_to_string(dir.path().join(name)).expect(name);
        assert!(read("kvsProducerApp.1").contains("Kinesis Video Streams"));
        assert!(read("kvsProducerApp-status.1").contains("prometheus"));
        for name in [
            "kvsProducerApp.bash",
            "_kvsProducerApp",
            "kvsProducerApp.fish",
        ] {
            assert!(read(name).contains("keep-buffer"), "{name}");
        }
    }
}
