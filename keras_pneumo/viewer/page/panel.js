// The panel: the answer, its probability and threshold, and how many of 100 such answers would be wrong.

const $ = (id) => document.getElementById(id);
const percent = (share) => `${Math.round(100 * share)}%`;

/** How many of 100 answers of this kind are wrong at a `prevalence` of the finding (Bayes); null if unknown. */
export function wrongInHundred(about, positive, prevalence) {
  const { sensitivity, specificity } = about;
  if (sensitivity === null || specificity === null) return null;
  const answers = positive
    ? sensitivity * prevalence + (1 - specificity) * (1 - prevalence)
    : (1 - sensitivity) * prevalence + specificity * (1 - prevalence);
  const wrong = positive ? (1 - specificity) * (1 - prevalence) : (1 - sensitivity) * prevalence;
  return answers > 0 ? (100 * wrong) / answers : null;
}

export function showAnswer(answer, about) {
  const panel = $("answer");
  const unlike = answer.probability === null; // not like the training images: there is nothing to show but that
  panel.hidden = false;
  for (const part of ["scale", "errors"]) $(part).hidden = unlike;
  panel.className = answer.pneumothorax ? "yes" : "no";
  $("name").textContent = answer.name;
  $("notes").replaceChildren(...answer.notes.map((text) => Object.assign(document.createElement("li"), { textContent: text })));
  $("facts").textContent = answer.facts.join(" · ");
  if (unlike) {
    panel.className = "unlike";
    $("word").textContent = "Not like the training images";
    $("numbers").textContent = answer.reason;
    $("note").textContent = "The detector has learned from nothing like it, so it gives no probability and no outline.";
    return;
  }
  $("word").textContent = answer.pneumothorax ? "Pneumothorax: yes" : "Pneumothorax: no";
  $("bar").style.width = percent(answer.probability);
  $("tick").style.left = `calc(${100 * answer.threshold}% - 1px)`;
  const area = answer.area_mm2 ? `, ${(answer.area_mm2 / 100).toFixed(1)} cm²` : "";
  const outlined = answer.outlined ? `Outlined: ${(100 * answer.mask_share).toFixed(1)}% of the image${area}.` : "Nothing is outlined.";
  $("numbers").textContent = `Probability ${answer.probability.toFixed(3)}, from ${answer.probability_from}; yes from ${answer.threshold.toFixed(3)} on. ${outlined}`;
  $("note").textContent = answer.pneumothorax === answer.outlined ? ""
    : answer.outlined ? "An area is outlined, but the probability is below the threshold."
    : "The probability is above the threshold, but nothing is outlined.";
  $("evidence").textContent = answer.evidence;
  showHundred(answer, about);
}

/** Show the hundred dots and the sentence for the prevalence on the slider. */
export function showHundred(answer, about) {
  const slider = $("prevalence");
  $("prevalence-value").textContent = `${slider.value}%`;
  const wrong = wrongInHundred(about, answer.pneumothorax, slider.value / 100);
  const whole = wrong === null ? 0 : Math.round(wrong);
  const dots = $("dots");
  if (!dots.children.length) for (let i = 0; i < 100; i++) dots.append(document.createElement("i"));
  [...dots.children].forEach((dot, i) => dot.classList.toggle("wrong", i < whole));
  const word = answer.pneumothorax ? "yes" : "no";
  $("dots").hidden = slider.closest("label").hidden = Boolean(about.synthetic);
  $("hundred").textContent = about.synthetic ? about.synthetic : wrong === null
    ? "How often such an answer is wrong is not known: validation had too few images."
    : wrong === 0 ? `Of 100 such answers (${word}), few would be wrong: none was wrong on validation.`
    : `Of 100 such answers (${word}), ${wrong < 0.5 ? "fewer than 1" : `about ${whole}`} would be wrong.`;
}

export function showAgreement(agreement, reviewed, total, file) {
  const done = total > 0 && reviewed === total;
  const lead = total ? (done ? `All ${total} read. ` : `${reviewed} of ${total} read. `) : "";
  $("agreement").textContent = `${lead}${agreement.sentence} Saved in ${file}.`;
  $("agreement").classList.toggle("done", done);
}

export function showVerdict(verdict) {
  for (const button of document.querySelectorAll("[data-verdict]")) {
    button.setAttribute("aria-pressed", String(button.dataset.verdict === verdict));
  }
}

export function showError(sentence) {
  $("error").textContent = sentence ?? "";
  $("error").hidden = !sentence;
}
