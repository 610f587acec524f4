//! Whether all members have the same WAL: streaming copies bytes, so a segment of the same name holds
//! the same bytes on all of them, up to where its timeline ends. Two servers that wrote on one timeline
//! would differ.

use crate::member::Member;
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Bytes of a page of WAL, by which differences are looked for.
const PAGE: usize = 8192;

/// A place in the WAL.
type Lsn = u64;

/// Compares all segments of all members, and reads the last timeline of each with `pg_waldump`.
pub(super) fn one_branch(bin: &Path, members: &[Member]) -> Result<String> {
    let mut ends = Vec::new();
    for member in members {
        ends.push(end_of_wal(bin, member)?);
    }
    let (timeline, end) = *ends.iter().min().context("there are no members")?;
    let ended = switches(members)?;
    let mut files: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    for member in members {
        let wal = member.data_dir().join("pg_wal");
        for entry in std::fs::read_dir(&wal).context("read pg_wal")?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.len() == 24 && name.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                files.entry(name).or_default().push(entry.path());
            }
        }
    }
    let mut compared = 0;
    for (name, copies) in &files {
        let (on, segment) = parse(name)?;
        let Some(last) = ended.get(&on).copied().or((on == timeline).then_some(end)) else {
            continue;
        };
        compared += compare(name, copies, segment, last)?;
    }
    Ok(format!(
        "{compared} bytes are the same, up to timeline {timeline} at {end:X}"
    ))
}

/// Timeline and number of a segment.
fn parse(name: &str) -> Result<(u32, u64)> {
    let part = |range: std::ops::Range<usize>| {
        let text = name.get(range).context("a short name")?;
        u64::from_str_radix(text, 16).context("a name that is no number")
    };
    Ok((
        u32::try_from(part(0..8)?)?,
        part(8..16)? << 32 | part(16..24)?,
    ))
}

/// Where each timeline but the last ends, from the history files.
fn switches(members: &[Member]) -> Result<BTreeMap<u32, Lsn>> {
    let mut ended = BTreeMap::new();
    for member in members {
        let wal = member.data_dir().join("pg_wal");
        for entry in std::fs::read_dir(&wal).context("read pg_wal")?.flatten() {
            if entry.path().extension().is_some_and(|e| e == "history") {
                let text = std::fs::read_to_string(entry.path()).context("read a history file")?;
                ended.extend(text.lines().filter_map(switch));
            }
        }
    }
    Ok(ended)
}

fn switch(line: &str) -> Option<(u32, Lsn)> {
    let mut words = line.split_whitespace();
    Some((words.next()?.parse().ok()?, lsn(words.next()?)?))
}

fn lsn(text: &str) -> Option<Lsn> {
    let (high, low) = text.split_once('/')?;
    let high = u64::from_str_radix(high, 16).ok()?;
    Some(high << 32 | u64::from_str_radix(low, 16).ok()?)
}

/// Last timeline of a member and the end of its last record, as `pg_waldump` reads it from the last
/// checkpoint on.
fn end_of_wal(bin: &Path, member: &Member) -> Result<(u32, Lsn)> {
    let control = super::control(bin, member)?;
    let value = |name: &str| control.get(name).with_context(|| format!("no \"{name}\""));
    let timeline: u32 = value("Latest checkpoint's TimeLineID")?.parse()?;
    let start = value("Latest checkpoint location")?;
    let wal = member.data_dir().join("pg_wal");
    let number = timeline.to_string();
    let mut command = std::process::Command::new(bin.join("pg_waldump"));
    command
        .arg("-p")
        .arg(&wal)
        .arg("-t")
        .arg(number)
        .arg("-s")
        .arg(start);
    // It ends with an error where the WAL ends; what it read before is what is asked for.
    let output = command.output().context("run pg_waldump")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let last = text.lines().last();
    let last =
        last.with_context(|| format!("{}: pg_waldump reads nothing from {start}", member.name))?;
    let at = last
        .split("lsn: ")
        .nth(1)
        .and_then(|rest| rest.split(',').next());
    let at = at
        .and_then(lsn)
        .with_context(|| format!("no LSN in {last}"))?;
    let length = last.split("len (rec/tot):").nth(1);
    let length = length.and_then(|rest| {
        rest.split('/')
            .nth(1)?
            .split(',')
            .next()?
            .trim()
            .parse::<u64>()
            .ok()
    });
    let length = length.with_context(|| format!("no length in {last}"))?;
    Ok((timeline, at + length))
}

/// Compares the copies of a segment up to where its timeline ends; how many bytes that were.
fn compare(name: &str, copies: &[PathBuf], segment: u64, last: Lsn) -> Result<usize> {
    let [first, others @ ..] = copies else {
        return Ok(0);
    };
    let one = std::fs::read(first).with_context(|| format!("read {}", first.display()))?;
    let size = u64::try_from(one.len())?;
    ensure!(size > 0, "{} is empty", first.display());
    let per_id = (1_u64 << 32) / size;
    let begin = ((segment >> 32) * per_id + (segment & 0xffff_ffff)) * size;
    let valid = usize::try_from(last.saturating_sub(begin).min(size))?;
    for path in others {
        let other = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
        let (a, b) = (one.get(..valid), other.get(..valid));
        if a != b {
            let pages = one.chunks(PAGE).zip(other.chunks(PAGE));
            let page = pages.take_while(|(a, b)| a == b).count();
            bail!(
                "{name} differs between {} and {} from page {page} of {} on, before its timeline ends at {last:X}",
                first.display(),
                path.display(),
                valid / PAGE
            );
        }
    }
    Ok(valid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_switches_are_read() {
        let parsed = parse("0000000A00000001000000FF").expect("a name");
        assert_eq!(parsed, (10, 1 << 32 | 0xff));
        assert_eq!(
            switch("3\t0/50001A0\tno recovery target"),
            Some((3, 0x0500_01a0))
        );
        assert_eq!(switch(""), None);
    }

    #[test]
    fn a_second_branch_is_seen_and_what_comes_after_the_end_is_not_compared() {
        let dir = std::env::temp_dir().join(format!("chaos-wal-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a directory");
        let (a, b) = (dir.join("a"), dir.join("b"));
        let mut bytes = vec![7_u8; 1 << 20];
        std::fs::write(&a, &bytes).expect("a file");
        bytes[3 * PAGE] = 8;
        std::fs::write(&b, &bytes).expect("a file");
        let begin = 5 << 20;
        let copies = [a, b];
        let until = |bytes: u64| compare("x", &copies, 5, begin + bytes);
        assert_eq!(until(3 * 8192).expect("equal"), 3 * PAGE);
        assert!(until(3 * 8192 + 1).is_err());
        std::fs::remove_dir_all(&dir).expect("removed");
    }
}
