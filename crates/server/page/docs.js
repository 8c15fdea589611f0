// Draws /openapi.json.

const element = (name, text, ...children) => {
  const made = document.createElement(name);
  if (text) made.textContent = text;
  made.append(...children);
  return made;
};

const typeOf = (schema) => {
  if (schema.enum) return schema.enum.filter((value) => value !== null).map((value) => JSON.stringify(value)).join(" or ");
  if (schema.anyOf) return schema.anyOf.map(typeOf).filter((type) => type !== "null").join(" or ");
  const types = [schema.type ?? "any"].flat().filter((type) => type !== "null");
  const range = schema.minimum !== undefined ? ` ${schema.minimum} to ${schema.maximum}` : "";
  const items = schema.items ? ` of ${typeOf(schema.items)}` : "";
  return types.join(" or ") + range + items;
};

const parameters = (schema) => {
  const table = element("table");
  table.append(element("tr", "", element("th", "parameter"), element("th", "type"), element("th", "does")));
  for (const [name, field] of Object.entries(schema.properties)) {
    const label = schema.required.includes(name) ? `${name} (required)` : name;
    table.append(element("tr", "", element("td", "", element("code", label)), element("td", typeOf(field)), element("td", field.description)));
  }
  return table;
};

const api = await (await fetch("/openapi.json")).json();
for (const [path, methods] of Object.entries(api.paths)) {
  for (const [method, operation] of Object.entries(methods)) {
    const details = element("details", "", element("summary", "", element("code", `${method.toUpperCase()} ${path}`), ` ${operation.summary}`));
    const body = operation.requestBody?.content["application/json"].schema;
    details.append(body ? parameters(body) : element("p", "Takes no body."));
    document.getElementById("routes").append(details);
  }
}
