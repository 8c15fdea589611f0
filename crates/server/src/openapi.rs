//! The OpenAPI document, made of the tables that requests are checked with.

use serde_json::{Map, Value, json};

use crate::auth::OPEN;
use crate::routes::Route;
use crate::wire::answers;
use crate::wire::fields::Field;

/// What the document says of a route.
pub struct Doc {
    /// In a few words.
    pub summary: &'static str,
    /// What it answers with.
    pub answer: Answer,
    /// The parameters of its body, and those that it must have.
    pub body: Option<(&'static [&'static [Field]], &'static [&'static str])>,
}

/// What a route answers with.
pub enum Answer {
    /// JSON of a shape of [`answers`].
    Json(fn() -> Value),
    /// The same, or as a stream events of another shape, of this name.
    Streamed(fn() -> Value, &'static str, fn() -> Value),
    /// Text of a media type.
    Text(&'static str),
}

/// The document of these routes, on a server that asks for a key or for none.
pub fn document(routes: &[Route], version: &str, needs_key: bool) -> Value {
    let mut paths = Map::new();
    let mut schemas = Map::from_iter([("Error".to_owned(), error_schema())]);
    for route in routes {
        if let Answer::Streamed(_, name, chunk) = route.doc.answer {
            schemas.insert(name.to_owned(), answers::schema(&chunk()));
        }
        let path = paths.entry(route.path).or_insert_with(|| json!({}));
        path[route.method.to_lowercase()] = operation(route);
    }
    let security = if needs_key { json!([{"key": []}]) } else { json!([]) };
    json!({
        "openapi": "3.1.0",
        "info": {"title": "Anysplit", "version": version, "description": "OpenAI's API, with vLLM's additions."},
        "paths": paths,
        "security": security,
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            "schemas": schemas,
        },
    })
}

fn operation(route: &Route) -> Value {
    let answer = match route.doc.answer {
        Answer::Json(shape) => json!({"application/json": {"schema": answers::schema(&shape())}}),
        Answer::Streamed(shape, name, _) => json!({
            "application/json": {"schema": answers::schema(&shape())},
            "text/event-stream": {"schema": event(name)},
        }),
        Answer::Text(kind) => json!({kind: {"schema": {"type": "string"}}}),
    };
    let mut operation = json!({
        "summary": route.doc.summary,
        "operationId": format!("{} {}", route.method, route.path).replace(|c: char| !c.is_ascii_alphanumeric(), "_"),
        "responses": {
            "200": {"description": "As asked for", "content": answer},
            "default": {
                "description": "An error",
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
            },
        },
    });
    if OPEN.contains(&route.path) {
        operation["security"] = json!([]);
    }
    if let Some((_, rest)) = route.path.split_once('{') {
        let name = rest.trim_end_matches('}');
        operation["parameters"] =
            json!([{"name": name, "in": "path", "required": true, "schema": {"type": "string"}}]);
    }
    if let Some((tables, required)) = route.doc.body {
        let fields = tables.iter().flat_map(|table| table.iter());
        let property = |field: &Field| {
            let mut schema = field.schema();
            if required.contains(&field.name) {
                forbid_null(&mut schema);
            }
            (field.name.to_owned(), schema)
        };
        let properties: Map<String, Value> = fields.map(property).collect();
        let schema = json!({
            "type": "object", "required": required, "properties": properties, "additionalProperties": false,
        });
        operation["requestBody"] =
            json!({"required": true, "content": {"application/json": {"schema": schema}}});
    }
    operation
}

/// Each event of a stream: a chunk, or an error that ends it early; then the end.
fn event(chunk: &str) -> Value {
    let named = |name: &str| json!({"$ref": format!("#/components/schemas/{name}")});
    let content = json!({"anyOf": [named(chunk), named("Error")]});
    let data = json!({"anyOf": [
        {"const": "[DONE]"},
        {"type": "string", "contentMediaType": "application/json", "contentSchema": content},
    ]});
    json!({"type": "object", "required": ["data"], "properties": {"data": data}})
}

/// `null` is as nothing, which a required field must not be.
fn forbid_null(schema: &mut Value) {
    if let Some(Value::Array(types)) = schema.get_mut("type") {
        types.retain(|name| name != "null");
    }
}

fn error_schema() -> Value {
    json!({
        "type": "object", "required": ["error"],
        "properties": {"error": {
            "type": "object", "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"}, "type": {"type": "string"},
                "param": {"type": ["string", "null"]}, "code": {"type": ["string", "null"]},
            },
        }},
    })
}
