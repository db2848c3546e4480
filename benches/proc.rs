//! CPU time and memory of a process and its children, from `/proc`.

use std::fs;

/// Clock ticks per second in `/proc`; Linux shows 100 to user space whatever the kernel's own.
const TICKS: f64 = 100.0;

/// Seconds of CPU time used so far, user and system, without children.
pub fn cpu(pid: u32) -> f64 {
    fields(pid, &[13, 14])
}

/// The same, with children that have ended and with those that run.
pub fn cpu_of_tree(pid: u32) -> f64 {
    let children = fs::read_dir("/proc").expect("procfs").flatten().filter_map(|entry| {
        let child: u32 = entry.file_name().to_str()?.parse().ok()?;
        (parent(child)? == pid).then_some(child)
    });
    fields(pid, &[13, 14, 15, 16]) + children.map(cpu).sum::<f64>()
}

pub fn parent(pid: u32) -> Option<u32> {
    stat(pid)?.get(3)?.parse().ok()
}

fn fields(pid: u32, which: &[usize]) -> f64 {
    // A process may end between being listed and being read.
    let Some(stat) = stat(pid) else { return 0.0 };
    which.iter().filter_map(|index| stat.get(*index)?.parse::<f64>().ok()).sum::<f64>() / TICKS
}

/// The fields of `/proc/PID/stat`; the name stands in brackets and may hold spaces.
fn stat(pid: u32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(") ")?;
    let mut fields = vec![String::new(), String::new()];
    fields.extend(rest.split_whitespace().map(str::to_owned));
    Some(fields)
}

/// Resident memory in MiB.
pub fn resident_mib(pid: u32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs");
    let line = status.lines().find(|line| line.starts_with("VmRSS")).expect("it has memory");
    line.split_whitespace().nth(1).and_then(|it| it.parse::<f64>().ok()).expect("a number") / 1024.0
}
