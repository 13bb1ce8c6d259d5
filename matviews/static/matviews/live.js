// Shows how far the work on a view is while it goes on, and what has become of it when it ends.
"use strict";
(() => {
  const page = document.getElementById("matviews-page");
  if (!page) return;

  const SOON = 1500; // milliseconds between two looks
  const LATEST = 30000; // between two tries while the server does not answer
  const PATIENCE = 10000; // for one answer
  const RENEWAL = 15000; // between two times that what only the server can word is asked for
  const PARTS = ["matviews-status", "matviews-phases", "matviews-history"];
  const find = (id) => document.getElementById(id);
  const works = () => find("matviews-status").dataset.works === "yes";

  let timer = null;
  let pause = SOON;
  let looking = false;
  let told = "";
  let renewed = Date.now();

  // Once for each phase and quarter of the work: a screen reader is not to talk all the time.
  const say = (words) => {
    if (words === told) return;
    told = words;
    find("matviews-said").textContent = words;
  };

  const trouble = (words) => {
    find("matviews-trouble").hidden = !words;
    find("matviews-trouble").textContent = words;
    if (words) say(words);
  };

  const show = (live) => {
    for (const each of page.querySelectorAll("[data-phase]")) {
      each.textContent = live.phases[each.dataset.phase] || "";
    }
    const bar = find("matviews-done");
    if (!bar) return;
    const percent = live.done === null ? null : Math.round(live.done * 100);
    if (percent === null) bar.removeAttribute("value");
    else bar.value = percent;
    find("matviews-percent").textContent = percent === null ? "" : `${percent} %`;
    find("matviews-words").textContent = live.words;
    const phase = live.words.split(":")[0];
    say(percent === null ? phase : `${phase}, ${Math.floor(percent / 25) * 25} % done`);
  };

  // The parts that no script fills, as the server writes them; a form being edited stays as it is.
  const renew = async (parts) => {
    const answer = await ask(location.href);
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    renewed = Date.now();
    for (const id of parts) {
      const [old, now] = [find(id), fresh.getElementById(id)];
      if (!old || !now) continue;
      const focused = old.contains(document.activeElement);
      old.replaceChildren(...now.childNodes);
      Object.assign(old.dataset, now.dataset);
      if (focused) find(`${id}-heading`).focus();
    }
    if (!works()) say(find("matviews-status").querySelector(".matviews-line").innerText);
  };

  const ask = async (url) => {
    const answer = await fetch(url, { signal: AbortSignal.timeout(PATIENCE), cache: "no-store" });
    if (answer.redirected || answer.status === 403) throw new Refused();
    if (!answer.ok) throw new Error(answer.statusText);
    return answer;
  };

  class Refused extends Error {}

  const look = async () => {
    timer = null;
    if (document.hidden || looking) return;
    looking = true;
    try {
      const live = await (await ask(page.dataset.progress)).json();
      show(live);
      const shown = find("matviews-status").dataset.refresh;
      if (!live.works || String(live.refresh) !== shown) await renew(PARTS);
      // Neither a button that somebody presses nor a traceback that somebody reads is replaced.
      else if (find("matviews-standing") && Date.now() - renewed > RENEWAL) {
        await renew(["matviews-standing"]);
      }
      pause = SOON;
      trouble("");
    } catch (error) {
      if (error instanceof Refused) {
        trouble("You are signed out, or may not look any more: load the page again.");
        return;
      }
      pause = Math.min(pause * 2, LATEST);
      trouble(`The server does not answer; tried again in ${Math.round(pause / 1000)} s.`);
    } finally {
      looking = false;
    }
    if (works()) timer = setTimeout(look, pause);
  };

  document.addEventListener("visibilitychange", () => {
    if (!document.hidden && !timer && works()) look();
  });
  if (works()) look();
})();
