"use strict";
// A click on the head of a column sorts by it: numbers from the largest, text from A, and a second click turns it.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  const numberIn = (text) => {
    const found = text.replaceAll(",", "").match(/[-+]?\d*\.?\d+(e[-+]?\d+)?/i);
    return found ? Number(found[0]) : NaN;
  };
  const isMissing = (text) => text === "" || text === "-";
  heads.forEach((head, at) => {
    const textOf = (row) => row.cells[at].textContent.trim();
    head.querySelector("button").addEventListener("click", () => {
      const rows = [...body.rows];
      const known = rows.map(textOf).filter((text) => !isMissing(text));
      const numeric = at > 0 && known.every((text) => !Number.isNaN(numberIn(text)));
      const before = head.getAttribute("aria-sort");
      const falling = before === "none" ? numeric : before === "ascending";
      for (const other of heads) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", falling ? "descending" : "ascending");
      rows.sort((a, b) => {
        const [one, two] = [textOf(a), textOf(b)];
        if (isMissing(one) || isMissing(two)) return isMissing(one) - isMissing(two); // last, whichever way
        const order = numeric ? numberIn(one) - numberIn(two) : one.localeCompare(two);
        return falling ? -order : order;
      });
      body.append(...rows);
    });
  });
}
