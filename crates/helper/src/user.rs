//! Users by name or number.

use std::fs;
use std::io;

/// Returns the user and the group of `user[:group]`, each a number or a name.
///
/// Without a group, it is the user's own by `/etc/passwd`, or else 0.
pub(crate) fn resolve(text: &str) -> io::Result<(u32, u32)> {
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let group = fs::read_to_string("/etc/group").unwrap_or_default();
    find(text, &passwd, &group)
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no such user or group"))
}

fn find(text: &str, passwd: &str, group: &str) -> Option<(u32, u32)> {
    let (user, wanted_group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    let entry = fields(passwd, user);
    let number = |entry: &Option<Vec<&str>>, at: usize| entry.as_ref()?.get(at)?.parse().ok();
    let uid = user.parse().ok().or(number(&entry, 2))?;
    let gid = match wanted_group {
        Some(name) => name.parse().ok().or(number(&fields(group, name), 2))?,
        None => number(&entry, 3).unwrap_or(0),
    };
    Some((uid, gid))
}

/// The fields of the line whose first field is the name or whose third field is the number.
fn fields<'a>(table: &'a str, name: &str) -> Option<Vec<&'a str>> {
    let mut lines = table
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>());
    lines.find(|fields| fields[0] == name || fields.get(2) == Some(&name))
}

#[cfg(test)]
mod tests {
    use super::find;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34::/:/bin/false\n";
    const GROUP: &str = "root:x:0:\nstaff:x:50:web\n";

    #[test]
    fn users_are_found_by_name_or_number() {
        for (text, expected) in [
            ("web", Some((33, 34))),
            ("33", Some((33, 34))),
            ("1000", Some((1000, 0))),
            ("1000:7", Some((1000, 7))),
            ("web:staff", Some((33, 50))),
            ("nobody", None),
            ("web:nobody", None),
        ] {
            assert_eq!(find(text, PASSWD, GROUP), expected, "{text}");
        }
    }
}
