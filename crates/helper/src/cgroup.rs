//! The resources that the container uses, from its control group.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::frames;
use crate::protocol::Kind;

const ROOT: &str = "/sys/fs/cgroup";

/// Writes a report of the used resources. Returns the exit code.
pub(crate) fn report() -> i32 {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let devices = fs::read_to_string("/proc/net/dev").unwrap_or_default();
    let text = text(Path::new(ROOT), &groups, &devices);
    let sent = frames::write(&mut io::stdout().lock(), Kind::Report, text.as_bytes());
    i32::from(sent.is_err())
}

/// One `key value` pair a line, for each value that is known.
fn text(root: &Path, groups: &str, devices: &str) -> String {
    let mut values = match root.join("cgroup.controllers").exists() {
        true => unified(&directory(root, "", groups)),
        false => legacy(root, groups),
    };
    values.extend(network(devices));
    let mut text = String::new();
    for (key, value) in values {
        let _ = writeln!(text, "{key} {value}");
    }
    text
}

type Values = Vec<(&'static str, u64)>;

/// The directory of this process below a hierarchy's. Inside of a namespace of control groups, or
/// where the engine mounts it alone, it is the root itself.
fn directory(root: &Path, controller: &str, groups: &str) -> PathBuf {
    let path = groups.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':');
        let controllers = parts.nth(1)?;
        let path = parts.next()?;
        let mine = controllers.split(',').any(|name| name == controller);
        mine.then(|| root.join(path.trim_start_matches('/')))
    });
    let directory = path.filter(|path| path.is_dir());
    directory.unwrap_or_else(|| root.to_owned())
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The value of a line `key value`.
fn keyed(path: &Path, key: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
    value?.trim().parse().ok()
}

fn unified(directory: &Path) -> Values {
    let mut values = Values::new();
    let mut add = |key, value: Option<u64>| values.extend(value.map(|value| (key, value)));
    add("cpu_usec", keyed(&directory.join("cpu.stat"), "usage_usec"));
    add("memory_bytes", number(&directory.join("memory.current")));
    add("memory_peak_bytes", number(&directory.join("memory.peak")));
    add(
        "memory_inactive_file_bytes",
        keyed(&directory.join("memory.stat"), "inactive_file"),
    );
    add("pids", number(&directory.join("pids.current")));
    if let Ok(io) = fs::read_to_string(directory.join("io.stat")) {
        let sum = |key: &str| {
            let words = io.split_whitespace();
            let values = words.filter_map(|word| word.strip_prefix(key)?.parse::<u64>().ok());
            values.sum()
        };
        add("read_bytes", Some(sum("rbytes=")));
        add("written_bytes", Some(sum("wbytes=")));
    }
    values
}

fn legacy(root: &Path, groups: &str) -> Values {
    let of = |controller| directory(&root.join(controller), controller, groups);
    let memory = of("memory");
    let mut values = Values::new();
    let mut add = |key, value: Option<u64>| values.extend(value.map(|value| (key, value)));
    let nanos = number(&of("cpuacct").join("cpuacct.usage"));
    add("cpu_usec", nanos.map(|nanos| nanos / 1000));
    add(
        "memory_bytes",
        number(&memory.join("memory.usage_in_bytes")),
    );
    add(
        "memory_peak_bytes",
        number(&memory.join("memory.max_usage_in_bytes")),
    );
    add(
        "memory_inactive_file_bytes",
        keyed(&memory.join("memory.stat"), "total_inactive_file"),
    );
    add("pids", number(&of("pids").join("pids.current")));
    if let Ok(io) = fs::read_to_string(of("blkio").join("blkio.throttle.io_service_bytes")) {
        let sum = |operation: &str| {
            let lines = io
                .lines()
                .filter_map(|line| line.split_once(' ')?.1.strip_prefix(operation));
            lines
                .filter_map(|value| value.trim().parse::<u64>().ok())
                .sum()
        };
        add("read_bytes", Some(sum("Read ")));
        add("written_bytes", Some(sum("Write ")));
    }
    values
}

/// The received and sent bytes of all devices but the loopback.
fn network(devices: &str) -> Values {
    let (mut received, mut sent) = (0, 0);
    let mut known = false;
    for (name, counters) in devices.lines().filter_map(|line| line.split_once(':')) {
        let counters: Vec<u64> = counters
            .split_whitespace()
            .map_while(|word| word.parse().ok())
            .collect();
        if name.trim() != "lo" && counters.len() >= 9 {
            known = true;
            received += counters[0];
            sent += counters[8];
        }
    }
    match known {
        true => vec![("rx_bytes", received), ("tx_bytes", sent)],
        false => Values::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_is_not_counted() {
        let devices = "Inter-|   Receive\n face |bytes\n    lo: 5 0 0 0 0 0 0 0 5 0\n  eth0: 7 0 0 0 0 0 0 0 9 0\n";
        assert_eq!(network(devices), [("rx_bytes", 7), ("tx_bytes", 9)]);
    }

    #[test]
    fn values_of_a_unified_hierarchy_are_read() {
        let root = tempfile::tempdir().unwrap();
        let group = root.path().join("pod/main");
        fs::create_dir_all(&group).unwrap();
        fs::write(root.path().join("cgroup.controllers"), "cpu memory").unwrap();
        fs::write(group.join("cpu.stat"), "usage_usec 12\nuser_usec 3\n").unwrap();
        fs::write(group.join("memory.current"), "4096\n").unwrap();
        fs::write(
            group.join("io.stat"),
            "8:0 rbytes=1 wbytes=2\n8:1 rbytes=10 wbytes=20\n",
        )
        .unwrap();
        let text = text(root.path(), "0::/pod/main\n", "");
        assert_eq!(
            text,
            "cpu_usec 12\nmemory_bytes 4096\nread_bytes 11\nwritten_bytes 22\n"
        );
    }

    #[test]
    fn values_of_legacy_hierarchies_are_read() {
        let root = tempfile::tempdir().unwrap();
        for (file, value) in [
            ("cpuacct/cpuacct.usage", "5000"),
            ("memory/memory.usage_in_bytes", "8192"),
            (
                "blkio/blkio.throttle.io_service_bytes",
                "8:0 Read 3\n8:0 Write 4\nTotal 7",
            ),
        ] {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, value).unwrap();
        }
        let text = text(root.path(), "3:cpu,cpuacct:/kubepods/x\n", "");
        assert_eq!(
            text,
            "cpu_usec 5\nmemory_bytes 8192\nread_bytes 3\nwritten_bytes 4\n"
        );
    }
}
