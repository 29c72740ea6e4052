// Names of languages; code carries the name of a programming language instead.

const PROGRAMS = {
  bash: "Shell", c: "C", cpp: "C++", csharp: "C#", css: "CSS", go: "Go", html: "HTML", java: "Java",
  javascript: "JavaScript", php: "PHP", python: "Python", ruby: "Ruby", rust: "Rust", shell: "Shell", sql: "SQL",
  typescript: "TypeScript",
};
const names = new Intl.DisplayNames(["en"], { type: "language", fallback: "none" });

const isSpoken = (code) => /^[a-z]{2,3}(-[A-Za-z0-9]+)*$/.test(code) && !(code in PROGRAMS) && code !== "und";

export function languageName(code) {
  if (code === "und" || code === "") return "unknown";
  if (code in PROGRAMS) return PROGRAMS[code];
  try {
    return names.of(code) ?? code;
  } catch {
    return code;
  }
}

// For the attribute `lang`, by which browsers choose fonts and screen readers their voice.
export const langAttribute = (code) => (isSpoken(code) ? code : undefined);

export function mixOf(hits) {
  const counts = new Map();
  for (const hit of hits) counts.set(hit.lang, (counts.get(hit.lang) ?? 0) + 1);
  return [...counts].sort((a, b) => b[1] - a[1] || a[0].localeCompare(b[0]));
}
