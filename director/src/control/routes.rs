//! What can be asked, and how it is answered. Each route and its description in the OpenAPI document come from the same line: neither can be
//! without the other.

use std::sync::Arc;

use axum::extract::{DefaultBodyLimit, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router, middleware};
use dyad_reactor::{BootClock, Clock};
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::events::Event;
use super::view::{self, Device, Director, Distribution, Failure, Group, Port, Status};
use super::{Plane, Unavailable, auth, counters, metrics};

/// Bytes of the longest request.
const BODY_MAX: usize = 16 << 10;

#[derive(OpenApi)]
#[openapi(info(title = "Dyad", description = "The control plane of one director of an array"))]
struct Document;

type Shared = State<Arc<Plane>>;

/// The routes, and the document that describes them.
pub(super) fn router(plane: Arc<Plane>) -> (Router, utoipa::openapi::OpenApi) {
    let (router, document) = OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(status))
        .routes(routes!(directors))
        .routes(routes!(groups))
        .routes(routes!(devices))
        .routes(routes!(ports))
        .routes(routes!(events))
        .routes(routes!(numbers))
        .routes(routes!(describe))
        .with_state(Arc::clone(&plane))
        .split_for_parts();
    let router = router
        .fallback(|| async { failure(StatusCode::NOT_FOUND, "there is nothing; /v1/openapi.json says what there is") })
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .layer(middleware::from_fn_with_state(plane, auth::check));
    (router, document)
}

/// An error as every route says it.
pub(super) fn failure(status: StatusCode, error: &str) -> Response {
    (status, Json(Failure { error: error.to_owned() })).into_response()
}

impl IntoResponse for Unavailable {
    fn into_response(self) -> Response {
        let error = match self {
            Self::Starting => "the director is starting: its reactor has not answered yet; ask again",
            Self::Busy => "too many ask at once; ask again",
        };
        failure(StatusCode::SERVICE_UNAVAILABLE, error)
    }
}

/// This director's view of itself.
#[utoipa::path(get, path = "/v1/status", responses((status = OK, body = Status), (status = SERVICE_UNAVAILABLE, body = Failure)))]
async fn status(State(plane): Shared) -> Result<Json<Status>, Unavailable> {
    let (snapshot, responding) = plane.look().await?;
    let facts = &plane.facts;
    Ok(Json(Status {
        array: facts.array.clone(),
        director: facts.director,
        pair: facts.pair,
        host: facts.host.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        process: std::process::id(),
        uptime_s: BootClock.now().since(facts.started).as_secs(),
        responding,
        state: snapshot.state.to_owned(),
        serves: snapshot.serves,
        epoch: snapshot.epoch,
        settled: snapshot.settled,
        commands: snapshot.commands,
        write_pending_blocks: snapshot.write_pending as u64,
        write_pending_limit_blocks: facts.write_pending_limit,
        cached_blocks: snapshot.cached as u64,
        free_frames: snapshot.frames_free as u64,
        frames: facts.frames,
        mirrored_blocks: snapshot.mirrored as u64,
        cache: view::numbers(counters::cache(&snapshot.cache)),
        reactor: view::numbers(counters::reactor(&facts.reactor.values())),
        mirror_latency_ns: Distribution::from(&snapshot.cache.mirror_latency),
        group: snapshot.group.as_ref().map(|group| view::group_of(facts.pair, group)),
    }))
}

/// The directors of the array, as configured.
#[utoipa::path(get, path = "/v1/directors", responses((status = OK, body = Vec<Director>)))]
async fn directors(State(plane): Shared) -> Json<Vec<Director>> {
    Json(plane.facts.directors.clone())
}

/// The groups that this director is the home of.
#[utoipa::path(get, path = "/v1/groups", responses((status = OK, body = Vec<Group>), (status = SERVICE_UNAVAILABLE, body = Failure)))]
async fn groups(State(plane): Shared) -> Result<Json<Vec<Group>>, Unavailable> {
    let (snapshot, _) = plane.look().await?;
    Ok(Json(snapshot.group.iter().map(|group| view::group_of(plane.facts.pair, group)).collect()))
}

/// The devices that this director reaches.
#[utoipa::path(get, path = "/v1/devices", responses((status = OK, body = Vec<Device>), (status = SERVICE_UNAVAILABLE, body = Failure)))]
async fn devices(State(plane): Shared) -> Result<Json<Vec<Device>>, Unavailable> {
    let (snapshot, _) = plane.look().await?;
    Ok(Json(view::devices_of(&snapshot)))
}

/// This director's ports for hosts.
#[utoipa::path(get, path = "/v1/ports", responses((status = OK, body = Vec<Port>), (status = SERVICE_UNAVAILABLE, body = Failure)))]
async fn ports(State(plane): Shared) -> Result<Json<Vec<Port>>, Unavailable> {
    let (snapshot, _) = plane.look().await?;
    Ok(Json(view::ports_of(plane.facts.director, &snapshot)))
}

/// What happened at this director, oldest first.
#[utoipa::path(get, path = "/v1/events", responses((status = OK, body = Vec<Event>)))]
async fn events(State(plane): Shared) -> Json<Vec<Event>> {
    Json(plane.events.list())
}

/// Metrics in the OpenMetrics text format.
#[utoipa::path(get, path = "/metrics", responses(
    (status = OK, body = String, content_type = "application/openmetrics-text"),
    (status = SERVICE_UNAVAILABLE, body = Failure)
))]
async fn numbers(State(plane): Shared) -> Result<Response, Unavailable> {
    let (snapshot, responding) = plane.look().await?;
    let text = metrics::text(&plane.facts, snapshot, responding).unwrap_or_default();
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, kind)], text).into_response())
}

/// This document.
#[utoipa::path(get, path = "/v1/openapi.json", responses((status = OK, body = Object)))]
async fn describe(State(plane): Shared) -> Json<utoipa::openapi::OpenApi> {
    Json(router(plane).1)
}
