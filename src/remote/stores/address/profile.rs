//! What AWS's configuration file says beside credentials.

use std::fs;

use crate::remote::stores::settings::Settings;

/// The value that the user's profile has for `key`.
pub(super) fn setting(settings: &Settings, key: &str) -> Option<String> {
    let path = settings.get("AWS_CONFIG_FILE").unwrap_or("~/.aws/config");
    let file = fs::read_to_string(settings.expanded(path)).ok()?;
    value(&file, settings.get("AWS_PROFILE").unwrap_or("default"), key)
}

/// The value of `key` in the section of `profile`; settings below others are indented.
fn value(file: &str, profile: &str, key: &str) -> Option<String> {
    let mut is_ours = false;
    for line in file.lines() {
        if let Some(section) = line.trim().strip_prefix('[') {
            let section = section.split(']').next().unwrap_or_default().trim();
            let name = section.strip_prefix("profile ").map_or(section, str::trim);
            is_ours = name == profile;
        } else if is_ours
            && let Some((name, value)) = line.split_once('=')
            && name.trim_end() == key
        {
            return Some(value.trim().to_owned()).filter(|value| !value.is_empty());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_profile_says_where() {
        let file =
            "[default]\nregion = eu-west-1\n[profile other]\ns3 =\n  region = nested\nregion=eu-west-2 \n";
        assert_eq!(value(file, "default", "region").as_deref(), Some("eu-west-1"));
        assert_eq!(value(file, "other", "region").as_deref(), Some("eu-west-2"));
        assert_eq!(value(file, "other", "endpoint_url"), None);
        assert_eq!(value(file, "none", "region"), None);
    }
}
