; The Windows installer: for this user only, so that no administrator is needed. Built by installer/build.py:
;   makensis -DVERSION=0.1.0 -DPAYLOAD=dist\decentllm -DOUTPUT=dist\decentllm-setup.exe installer\windows\decentllm.nsi
Unicode true
Target amd64-unicode
!include "MUI2.nsh"
!define KEY "Software\Microsoft\Windows\CurrentVersion\Uninstall\DecentLLM"

Name "DecentLLM"
OutFile "${OUTPUT}"
RequestExecutionLevel user
SetCompressor /SOLID lzma

!insertmacro MUI_PAGE_WELCOME
!insertmacro MUI_PAGE_INSTFILES
!define MUI_FINISHPAGE_RUN "$INSTDIR\decentllm.exe"
!insertmacro MUI_PAGE_FINISH
!insertmacro MUI_UNPAGE_CONFIRM
!insertmacro MUI_UNPAGE_INSTFILES
!insertmacro MUI_LANGUAGE "English"

; The folder is always this one: it is deleted whole, which must never be a folder with something else in it.
!macro FIX_FOLDER
  StrCpy $INSTDIR "$LOCALAPPDATA\Programs\DecentLLM"
!macroend
Function .onInit
  !insertmacro FIX_FOLDER
FunctionEnd
Function un.onInit
  !insertmacro FIX_FOLDER
FunctionEnd

Section "DecentLLM"
  ; An older version leaves first: files that the new one has no more must not stay.
  RMDir /r "$INSTDIR"
  SetOutPath "$INSTDIR"
  File /r "${PAYLOAD}/*"
  CreateShortcut "$SMPROGRAMS\DecentLLM.lnk" "$INSTDIR\decentllm.exe"
  ; decentllm:// links; the app only ever asks before it does anything with one.
  WriteRegStr HKCU "Software\Classes\decentllm" "" "URL:DecentLLM join link"
  WriteRegStr HKCU "Software\Classes\decentllm" "URL Protocol" ""
  WriteRegStr HKCU "Software\Classes\decentllm\shell\open\command" "" '"$INSTDIR\decentllm.exe" "%1"'
  WriteUninstaller "$INSTDIR\uninstall.exe"
  WriteRegStr HKCU "${KEY}" "DisplayName" "DecentLLM"
  WriteRegStr HKCU "${KEY}" "DisplayVersion" "${VERSION}"
  WriteRegStr HKCU "${KEY}" "Publisher" "The DecentLLM developers"
  WriteRegStr HKCU "${KEY}" "InstallLocation" "$INSTDIR"
  WriteRegStr HKCU "${KEY}" "DisplayIcon" "$INSTDIR\decentllm.exe"
  WriteRegStr HKCU "${KEY}" "UninstallString" '"$INSTDIR\uninstall.exe"'
  WriteRegStr HKCU "${KEY}" "QuietUninstallString" '"$INSTDIR\uninstall.exe" /S'
  WriteRegDWORD HKCU "${KEY}" "NoModify" 1
  WriteRegDWORD HKCU "${KEY}" "NoRepair" 1
SectionEnd

Section "Uninstall"
  ; Weights, runtime and settings: asked for, except when quiet, where they stay (an upgrade may come).
  IfSilent keep
  MessageBox MB_YESNO|MB_DEFBUTTON2 "Delete downloaded weights, the runtime and settings too?" IDNO keep
  ExecWait '"$INSTDIR\decentllm.exe" clean --yes'
keep:
  DeleteRegValue HKCU "Software\Microsoft\Windows\CurrentVersion\Run" "DecentLLM"
  DeleteRegKey HKCU "Software\Classes\decentllm"
  DeleteRegKey HKCU "${KEY}"
  Delete "$SMPROGRAMS\DecentLLM.lnk"
  RMDir /r "$INSTDIR"
SectionEnd
