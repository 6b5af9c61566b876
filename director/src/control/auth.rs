//! Who may ask. A request from this machine needs nothing but a `Host` that is an address or `localhost`: a web page that a browser here shows could
//! otherwise reach the control plane under a name of its own (DNS rebinding). From elsewhere it needs `Authorization: Bearer TOKEN`
//! (RFC 6750, section 2.1).

use std::net::{IpAddr, SocketAddr};

use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use std::sync::Arc;

use super::Plane;
use super::listener::Peer;
use super::routes::failure;
use crate::config::Token;

/// Lets a request pass, or not.
pub(super) async fn check(
    State(plane): State<Arc<Plane>>,
    ConnectInfo(Peer(from)): ConnectInfo<Peer>,
    request: Request,
    next: Next,
) -> Response {
    match allowed(from.ip(), request.headers(), plane.facts.token.as_ref()) {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    }
}

#[derive(Debug, Copy, Clone, PartialEq, Eq)]
enum Refusal {
    Token,
    Host,
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        match self {
            Self::Token => failure(
                StatusCode::UNAUTHORIZED,
                "from another machine the control plane needs the token of the configuration: `--config`, or DYAD_TOKEN",
            ),
            Self::Host => failure(StatusCode::FORBIDDEN, "ask for an address or localhost, not for a name"),
        }
    }
}

fn allowed(from: IpAddr, headers: &HeaderMap, token: Option<&Token>) -> Result<(), Refusal> {
    let bearer = || headers.get(header::AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer ");
    let shown =
        token.is_some_and(|token| bearer().is_some_and(|shown| same(shown.as_bytes(), token.as_str().as_bytes())));
    if shown {
        return Ok(());
    }
    if !from.to_canonical().is_loopback() {
        return Err(Refusal::Token);
    }
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or("");
    let name = host.parse::<SocketAddr>().map(|_| true).unwrap_or_else(|_| {
        let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
        name == "localhost" || name.parse::<IpAddr>().is_ok() || host.parse::<IpAddr>().is_ok()
    });
    if name { Ok(()) } else { Err(Refusal::Host) }
}

/// Takes as long for any wrong token of this length.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(host: &str, bearer: Option<&str>) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, host.parse().unwrap());
        if let Some(bearer) = bearer {
            headers.insert(header::AUTHORIZATION, bearer.parse().unwrap());
        }
        headers
    }

    #[test]
    fn beyond_loopback_only_the_token_counts() {
        let token = Token::new("0123456789abcdef").unwrap();
        let far: IpAddr = "192.0.2.1".parse().unwrap();
        let ask = |bearer, token: Option<&Token>| allowed(far, &headers("192.0.2.2:7600", bearer), token);
        assert_eq!(ask(Some("Bearer 0123456789abcdef"), Some(&token)), Ok(()));
        for wrong in [None, Some("Bearer 0123456789abcdeF"), Some("Bearer "), Some("0123456789abcdef"), Some("Basic x")]
        {
            assert_eq!(ask(wrong, Some(&token)), Err(Refusal::Token), "{wrong:?}");
        }
        assert_eq!(ask(Some("Bearer "), None), Err(Refusal::Token), "no token is not an empty token");
    }

    #[test]
    fn on_this_machine_names_are_refused_and_addresses_are_not() {
        for local in ["127.0.0.1", "::1", "::ffff:127.0.0.1"] {
            let ask = |host: &str| allowed(local.parse().unwrap(), &headers(host, None), None);
            for host in ["127.0.0.1:7600", "[::1]:7600", "localhost:7600", "localhost", "127.0.0.1"] {
                assert_eq!(ask(host), Ok(()), "{host}");
            }
            for host in ["evil.example:7600", "evil.example", "", "localhost.evil.example:7600"] {
                assert_eq!(ask(host), Err(Refusal::Host), "{host}");
            }
        }
    }
}
