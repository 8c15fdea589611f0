// Numbers as people read them. What is not known is a dash.

const NONE = "–";
const isKnown = (value) => Number.isFinite(value);
const fixed = (value, digits) => value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });

/** So many of something. */
export const count = (value) => (isKnown(value) ? fixed(value, 0) : NONE);

/** So many of something large. */
export const compact = (value) => value.toLocaleString("en", { notation: "compact", maximumSignificantDigits: 3 });

/** How many a second: three digits that matter. */
export const rate = (value) => (isKnown(value) ? fixed(value, value > 0 && value < 99.95 ? 1 : 0) : NONE);

/** A share of 1, in per cent. */
export const percent = (share, digits = 0) => (isKnown(share) ? `${fixed(100 * share, digits)} %` : NONE);

/** Milliseconds. */
export const milliseconds = (ms) => {
  if (!isKnown(ms)) return NONE;
  if (ms < 999.5) return `${fixed(ms, ms < 9.95 ? 2 : ms < 99.5 ? 1 : 0)} ms`;
  return seconds(ms / 1000);
};

/** Seconds. */
export const seconds = (s) => {
  if (!isKnown(s)) return NONE;
  if (s < 0.9995) return milliseconds(1000 * s);
  if (s < 120) return `${fixed(s, s < 9.995 ? 2 : 1)} s`;
  return s < 7200 ? `${fixed(s / 60, 0)} min` : `${fixed(s / 3600, 0)} h`;
};

/** Bytes, in powers of 1000 like those that the server prints. */
export const bytes = (value) => {
  if (!isKnown(value)) return NONE;
  const units = ["B", "kB", "MB", "GB", "TB"];
  const unit = value < 1000 ? 0 : Math.min(Math.floor(Math.log10(value) / 3), units.length - 1);
  const scaled = value / 1000 ** unit;
  return `${fixed(scaled, unit === 0 || scaled >= 9.95 ? 0 : 2)} ${units[unit]}`;
};
