// SQL with its parts coloured. Every part becomes a text node: nothing of it is ever markup.

import { element } from "./text.js";

const PARTS = new RegExp(
  [
    "(?<comment>--[^\\n]*|/\\*[\\s\\S]*?(?:\\*/|$))",
    "(?<string>'(?:[^']|'')*(?:'|$))",
    '(?<name>"(?:[^"]|"")*(?:"|$)|`[^`]*(?:`|$)|\\[[^\\]]*(?:\\]|$))',
    "(?<number>\\b\\d+(?:\\.\\d+)?(?:[eE][+-]?\\d+)?\\b)",
    "(?<word>[A-Za-z_]\\w*)",
    "(?<rest>[\\s\\S])",
  ].join("|"),
  "g",
);

const KEYWORDS = new Set(
  `ALL AND ANY AS ASC BETWEEN BY CASE CAST COLLATE CROSS CURRENT_DATE CURRENT_TIMESTAMP DATE DESC
   DISTINCT ELSE END ESCAPE EXCEPT EXISTS EXTRACT FALSE FETCH FILTER FIRST FOLLOWING FROM FULL GLOB
   GROUP HAVING ILIKE IN INNER INTERSECT INTERVAL IS JOIN LAST LATERAL LEFT LIKE LIMIT NATURAL NOT
   NULL NULLS OFFSET ON OR ORDER OUTER OVER PARTITION PRECEDING QUALIFY RANGE RECURSIVE RIGHT ROW
   ROWS SELECT SET THEN TRUE UNBOUNDED UNION USING VALUES WHEN WHERE WINDOW WITH`.split(/\s+/),
);

/** Show the statement in `place`. */
export function showSql(place, sql) {
  const parts = [];
  for (const match of sql.matchAll(PARTS)) {
    const [text] = match;
    const { word, rest } = match.groups;
    if (word !== undefined && KEYWORDS.has(word.toUpperCase())) {
      parts.push(element("span", text, "sql-keyword"));
    } else if (word !== undefined || rest !== undefined) {
      parts.push(plain(text));
    } else {
      const kind = Object.keys(match.groups).find((name) => match.groups[name] !== undefined);
      parts.push(element("span", text, `sql-${kind}`));
    }
  }
  place.replaceChildren(...parts);
}

function plain(text) {
  return document.createTextNode(element("span", text).textContent);
}
