// Runs before the first paint, so that a chosen theme does not flash in the other one.
"use strict";
{
  const chosen = localStorage.getItem("tallymark-theme");
  if (chosen === "dark" || chosen === "light") document.documentElement.dataset.theme = chosen;
}
