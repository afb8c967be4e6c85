//! What the files of AWS's own tools say of a profile.

use std::fs;

use super::settings::Settings;

/// The profile that the user has chosen.
pub(super) fn chosen(settings: &Settings) -> &str {
    settings.get("AWS_PROFILE").unwrap_or("default")
}

/// What `profile` says of `key`: first in the file of credentials, then in that of the configuration.
pub(super) fn setting(settings: &Settings, profile: &str, key: &str) -> Option<String> {
    let files = [("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"), ("AWS_CONFIG_FILE", "~/.aws/config")];
    files.into_iter().find_map(|(variable, usual)| {
        let path = settings.expanded(settings.get(variable).unwrap_or(usual));
        value(&fs::read_to_string(path).ok()?, profile, key)
    })
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

    #[test]
    fn the_file_of_credentials_comes_first() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name, text| {
            let path = folder.path().join(name);
            fs::write(&path, text).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let settings: Settings = [
            ("AWS_SHARED_CREDENTIALS_FILE", write("credentials", "[it]\nregion = eu-west-1\n")),
            (
                "AWS_CONFIG_FILE",
                write("config", "[profile it]\nregion = eu-west-2\nendpoint_url = http://it\n"),
            ),
        ]
        .into_iter()
        .collect();
        assert_eq!(setting(&settings, "it", "region").as_deref(), Some("eu-west-1"));
        assert_eq!(setting(&settings, "it", "endpoint_url").as_deref(), Some("http://it"));
    }
}
