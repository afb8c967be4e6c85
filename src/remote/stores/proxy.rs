//! The proxy that the environment names for requests, as other clients understand it: one for each scheme, and hosts that are
//! reached without.

use ureq::{Error as Failure, Proxy};

use super::settings::Settings;

/// The proxy for URLs of `scheme`, if there is one.
///
/// # Errors
/// What is set is no address of a proxy: a request that went around it would go where it must not.
pub(super) fn proxy(scheme: &str, settings: &Settings) -> Result<Option<Proxy>, Failure> {
    let upper = scheme.to_ascii_uppercase();
    let names = [&format!("{scheme}_proxy"), &format!("{upper}_PROXY"), "all_proxy", "ALL_PROXY"];
    let Some(given) = settings.first(&names) else {
        return Ok(None);
    };
    let given = Proxy::new(given)?;
    let place =
        given.uri().authority().map_or("", |whole| whole.as_str().rsplit('@').next().unwrap_or_default());
    if place != given.host() && given.uri().port_u16().is_none() {
        return Err(Failure::InvalidProxyUrl); // its port is no number, and would be taken for none
    }
    let mut proxy = Proxy::builder(given.protocol()).host(given.host()).port(given.port());
    if let Some(name) = given.username() {
        proxy = proxy.username(name);
    }
    if let Some(password) = given.password() {
        proxy = proxy.password(password);
    }
    for host in settings.first(&["no_proxy", "NO_PROXY"]).unwrap_or_default().split(',') {
        let host = host.trim().trim_start_matches("*.").trim_start_matches('.');
        if !host.is_empty() {
            proxy = proxy.no_proxy(host).no_proxy(&format!(".{host}")); // itself, and what lies below it
        }
    }
    proxy.build().map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(scheme: &str, pairs: &[(&str, &str)]) -> Option<Proxy> {
        proxy(scheme, &pairs.iter().copied().collect()).unwrap()
    }

    #[test]
    fn each_scheme_has_its_own_proxy() {
        let both = [("http_proxy", "http://a:1"), ("HTTPS_PROXY", "b:2"), ("ALL_PROXY", "socks5h://c")];
        let host = |scheme, pairs| found(scheme, pairs).map(|it| format!("{}:{}", it.host(), it.port()));
        assert_eq!(host("http", &both).as_deref(), Some("a:1"));
        assert_eq!(host("https", &both).as_deref(), Some("b:2"));
        assert_eq!(host("http", &both[1..]).as_deref(), Some("c:1080"));
        assert_eq!(host("http", &both[1..2]), None);
        assert_eq!(host("http", &[("http_proxy", " ")]), None);
    }

    #[test]
    fn hosts_are_reached_without_it_with_all_below_them() {
        let pairs =
            [("http_proxy", "http://me:a%40b@p:1"), ("no_proxy", "x.test, .y.test,*.z.test,127.0.0.1,")];
        let proxy = found("http", &pairs).unwrap();
        assert_eq!((proxy.username(), proxy.password()), (Some("me"), Some("a@b")));
        let is_around = |host: &str| proxy.is_no_proxy(&format!("http://{host}/").parse().unwrap());
        for host in ["x.test", "X.test", "a.x.test", "y.test", "a.y.test", "a.z.test", "127.0.0.1"] {
            assert!(is_around(host), "{host}");
        }
        for host in ["ax.test", "x.test.org", "127.0.0.10"] {
            assert!(!is_around(host), "{host}");
        }
        let all = found("http", &[pairs[0], ("NO_PROXY", "*")]).unwrap();
        assert!(all.is_no_proxy(&"http://x.test/".parse().unwrap()));
    }

    #[test]
    fn what_is_no_proxy_is_refused() {
        for wrong in ["ftp://p:1", "http://", "http://p:port", "http://me:%ff@p"] {
            let refused = proxy("http", &[("http_proxy", wrong)].into_iter().collect());
            assert!(matches!(refused, Err(Failure::InvalidProxyUrl)), "{wrong}: {refused:?}");
        }
    }
}
