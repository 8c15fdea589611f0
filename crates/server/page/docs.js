// Draws openapi.json. Paths are relative, so a proxy may put the page below a prefix.

import { at } from "./api.js";

const element = (name, text, ...children) => {
  const made = document.createElement(name);
  if (text) made.textContent = text;
  made.append(...children);
  return made;
};

/** Bounds that a number of this language can't hold say nothing to its reader either. */
const isShown = (bound) => bound !== undefined && Math.abs(bound) <= Number.MAX_SAFE_INTEGER;

const rangeOf = ({ minimum, exclusiveMinimum, maximum }) => {
  const least = isShown(minimum) ? `from ${minimum}` : isShown(exclusiveMinimum) ? `above ${exclusiveMinimum}` : "";
  const most = isShown(maximum) ? `to ${maximum}` : "";
  return [least, most].filter(Boolean).join(" ");
};

const typeOf = (schema) => {
  if (schema.enum) return schema.enum.filter((value) => value !== null).map((value) => JSON.stringify(value)).join(" or ");
  if (schema.anyOf) return schema.anyOf.map(typeOf).filter(Boolean).join(" or ");
  const types = [schema.type ?? "any"].flat().filter((type) => type !== "null").join(" or ");
  const items = schema.items ? `of ${typeOf(schema.items)}` : "";
  return [types, items, rangeOf(schema)].filter(Boolean).join(" ");
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

/** An answer's shape, as JSON with types for values. */
const outline = (schema, indent = "") => {
  const inner = `${indent}  `;
  if (schema.properties) {
    const fields = Object.entries(schema.properties).map(([name, field]) => `${inner}${JSON.stringify(name)}: ${outline(field, inner)}`);
    return `{\n${fields.join(",\n")}\n${indent}}`;
  }
  if (schema.items?.properties) return `[${outline(schema.items, indent)}, …]`;
  const shape = (schema.anyOf ?? []).find((one) => one.properties || one.items?.properties);
  return shape ? `${outline(shape, indent)} or null` : typeOf(schema);
};

/** The document, or why there is none. */
const ask = async () => {
  const response = await fetch(at("openapi.json")).catch(() => null);
  const answer = await response?.json().catch(() => null);
  if (response?.ok && answer) return answer;
  throw new Error(answer?.error?.message ?? (response ? `the server answered with status ${response.status}` : "the server does not answer"));
};

const draw = (api) => {
  for (const [path, methods] of Object.entries(api.paths)) {
    for (const [method, operation] of Object.entries(methods)) {
      const details = element("details", "", element("summary", "", element("code", `${method.toUpperCase()} ${path}`), ` ${operation.summary}`));
      const body = operation.requestBody?.content["application/json"].schema;
      details.append(body ? parameters(body) : element("p", "Takes no body."));
      const answer = operation.responses["200"].content;
      const [kind] = Object.keys(answer);
      details.append(element("p", `Answers with ${Object.keys(answer).join(", or as a stream with ")}:`));
      details.append(element("pre", outline(answer[kind].schema)));
      routes.append(details);
    }
  }
};

const routes = document.getElementById("routes");
try {
  draw(await ask());
} catch (error) {
  const failure = element("p", `The routes cannot be shown: ${error.message}. Reload the page to try again.`);
  failure.setAttribute("role", "alert");
  routes.replaceChildren(failure);
}
